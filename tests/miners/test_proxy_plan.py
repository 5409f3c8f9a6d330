"""Groups of neighbours: exactly those of taking one class after the other, each class once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.miners import proxy_plan
from nearfar.miners.proxy_plan import epoch_groups, group_hardness, neighbour_groups


def unit_vectors(count, dimension, seed=0):
    vectors = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def one_after_the_other(proxies, size, order):
    """The plan as the paper's outline states it: a random class takes its nearest among those that remain."""
    similarity, remaining, groups = proxies @ proxies.T, set(order), []
    for seed in order:
        if len(remaining) < size:
            break
        if seed in remaining:
            near = sorted(remaining - {seed}, key=lambda other: -float(similarity[seed, other]))
            groups.append([seed, *near[: size - 1]])
            remaining -= set(groups[-1])
    return groups


@pytest.mark.parametrize(("count", "size"), [(40, 4), (200, 8), (203, 10), (64, 64), (15, 16), (33, 1)])
def test_groups_are_those_of_taking_one_class_after_the_other(count, size):
    proxies = unit_vectors(count, 6)
    groups, left = neighbour_groups(proxies, size, np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(count).tolist()
    expected = one_after_the_other(proxies, size, order)
    assert [set(group.tolist()) for group in groups] == [set(group) for group in expected]
    assert len(left) == count % size


def test_a_class_whose_neighbours_are_taken_is_searched_again(monkeypatch):
    """Two candidates a place and everything in one wave: most classes find their neighbours taken."""
    monkeypatch.setattr(proxy_plan, "_WAVE", 4.0)
    proxies = unit_vectors(300, 3)
    groups, left = neighbour_groups(proxies, 10, np.random.default_rng(0))
    assert sorted(np.concatenate(groups).tolist()) == list(range(300))
    assert len(left) == 0


def test_small_tiles_change_nothing(monkeypatch):
    proxies = unit_vectors(300, 5)
    expected, _ = neighbour_groups(proxies, 7, np.random.default_rng(0))
    monkeypatch.setattr(proxy_plan, "_TILE_BYTES", 1)
    groups, _ = neighbour_groups(proxies, 7, np.random.default_rng(0))
    assert [group.tolist() for group in groups] == [group.tolist() for group in expected]


def test_the_worked_example_of_the_specification():
    """Places on a line at 0, 1, 2.1, 10, 11, 12.5, groups of three: the first three and the last three."""
    angle = torch.tensor([0.0, 1.0, 2.1, 10.0, 11.0, 12.5]) / 10
    proxies = torch.stack([angle.cos(), angle.sin()], 1)
    for seed in range(10):
        groups, left = neighbour_groups(proxies, 3, np.random.default_rng(seed))
        assert sorted(sorted(group.tolist()) for group in groups) == [[0, 1, 2], [3, 4, 5]]
        assert len(left) == 0
    groups, left = neighbour_groups(proxies, 4, np.random.default_rng(0))
    assert len(groups) == 1
    assert len(left) == 2


def test_a_class_without_a_proxy_is_grouped_too():
    proxies = unit_vectors(12, 4)
    proxies[[2, 7]] = 0
    groups, _ = neighbour_groups(proxies, 3, np.random.default_rng(0))
    assert sorted(np.concatenate(groups).tolist()) == list(range(12))


@settings(max_examples=60, deadline=None)
@given(
    visits=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    size=st.integers(1, 8),
    seed=st.integers(0, 99),
    random_share=st.sampled_from([0.0, 0.3, 1.0]),
    known=st.booleans(),
)
def test_every_visit_is_planned_once_and_the_number_of_groups_never_changes(visits, size, seed, random_share, known):
    visits = np.array(visits)
    proxies = unit_vectors(len(visits), 4) if known else None
    groups, left = epoch_groups(visits, size, np.random.default_rng(seed), proxies, random_share)
    assert len(groups) == visits.sum() // size
    assert all(len(group) == size for group in groups)
    assert np.bincount(np.concatenate([*groups, left]).astype(int), minlength=len(visits)).tolist() == visits.tolist()


def test_while_enough_classes_remain_none_meets_itself():
    visits = np.full(50, 3)
    groups, _ = epoch_groups(visits, 10, np.random.default_rng(0), unit_vectors(50, 4))
    assert all(len(set(group.tolist())) == 10 for group in groups)


def test_random_groups_are_less_alike_and_a_share_lies_between():
    proxies = unit_vectors(600, 4)
    visits = np.ones(600, dtype=np.int64)
    hardness = [
        group_hardness(proxies, epoch_groups(visits, 12, np.random.default_rng(0), proxies, share)[0])
        for share in (0.0, 0.5, 1.0)
    ]
    assert hardness[0] > 0.8 > hardness[1] > 0.2 > hardness[2]


def test_group_hardness_is_the_mean_over_pairs_of_different_members():
    proxies = torch.nn.functional.normalize(unit_vectors(9, 5).double(), dim=1)
    groups = [np.array([0, 3, 5]), np.array([1, 2, 8])]
    pairs = [
        float(proxies[i] @ proxies[j]) for group in groups for i in group.tolist() for j in group.tolist() if i != j
    ]
    assert group_hardness(proxies, groups) == pytest.approx(np.mean(pairs), abs=1e-12)

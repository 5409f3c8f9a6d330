"""The in-batch miners beside pytorch-metric-learning's and beside naive loops, and what they all share."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, TripletMarginLoss
from nearfar.losses.engine import comparison
from nearfar.miners import (
    AngularMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    TripletMarginMiner,
)
from nearfar.miners.in_batch import marked, row_extreme, row_minimum

TYPES = ("all", "hard", "semihard", "easy")
PAIRS = {
    "multi-similarity": (MultiSimilarityMiner(), pml.MultiSimilarityMiner()),
    "multi-similarity without slack": (MultiSimilarityMiner(0.0), pml.MultiSimilarityMiner(epsilon=0.0)),
    "batch-hard": (BatchHardMiner(), pml.BatchHardMiner()),
    **{t: (TripletMarginMiner(0.1, t), pml.TripletMarginMiner(margin=0.1, type_of_triplets=t)) for t in TYPES},
    "angular": (AngularMiner(), pml.AngularMiner()),
    "angular 40": (AngularMiner(40), pml.AngularMiner(angle=40)),
}
EVERY = {**{name: ours for name, (ours, _) in PAIRS.items()}, "distance-weighted": DistanceWeightedMiner()}
LABELS = {
    "classes of all sizes": [0, 1, 0, 2, 1, 0, 4, 3, 2, 0, 3, 5, 1, 7, 6, 6],
    "no positives at all": list(range(12)),
    "one class": [3] * 7,
    "one sample": [1],
    "nothing": [],
    "huge labels": [2**62, 2**62 + 1, 2**62, -(2**62), 2**62 + 1, -(2**62)],
}


def points(count: int, seed: int = 0, dim: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * lengths


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    monkeypatch.setattr(comparison, "TILE_BYTES", 1)
    monkeypatch.setattr(comparison, "_FEWEST_ROWS", 3)


def as_sets(indices) -> list[set[tuple[int, ...]]]:
    """Pairs or triplets, each once."""
    groups = [indices] if len(indices) == 3 else [indices[:2], indices[2:]]
    found = [list(zip(*(part.tolist() for part in group), strict=True)) for group in groups]
    assert all(len(set(group)) == len(group) for group in found)
    return [set(group) for group in found]


def assert_valid(indices, labels, ref_labels, is_self) -> None:
    first, positive, *second, negative = indices
    again = second[0] if second else first
    assert all(part.dtype == torch.int64 and part.ndim == 1 for part in indices)
    assert torch.equal(labels[first], ref_labels[positive])
    assert not (labels[again] == ref_labels[negative]).any()
    assert not is_self or not (first == positive).any()


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_pairs_as_pytorch_metric_learning(name, labels):
    ours, theirs = PAIRS[name]
    x, labels = points(len(labels)), torch.tensor(labels, dtype=torch.int64)
    found = ours(x, labels)
    assert_valid(found, labels, labels, True)
    # Theirs makes an empty matrix of no samples and fails.
    expected = theirs(x, labels) if len(labels) else tuple(labels for _ in found)
    assert as_sets(found) == as_sets(expected)


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_pairs_with_references(name):
    ours, theirs = PAIRS[name]
    labels = torch.tensor(LABELS["classes of all sizes"])
    references, ref_labels = points(90, seed=2), torch.arange(90) % 9
    x = points(len(labels))
    found = ours(x, labels, references, ref_labels)
    assert_valid(found, labels, ref_labels, False)
    assert as_sets(found) == as_sets(theirs(x, labels, references, ref_labels))
    copied = ours(x, labels, x.clone(), labels.clone())
    assert as_sets(copied) == as_sets(theirs(x, labels, x.clone(), labels.clone()))
    same = ours(x, labels, x, labels)
    assert all(torch.equal(a, b) for a, b in zip(same, ours(x, labels), strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_pairs_in_single_precision_and_ordinary_tiles(name, monkeypatch):
    monkeypatch.undo()
    ours, theirs = PAIRS[name]
    x, labels = points(300, dim=16).float(), torch.arange(300) % 60
    differing = [len(a ^ b) for a, b in zip(as_sets(ours(x, labels)), as_sets(theirs(x, labels)), strict=True)]
    # Rounding may send a pair on the boundary to either side.
    assert max(differing) <= 1e-5 * 300 * 300 * 5, differing


@pytest.mark.parametrize("name", PAIRS)
def test_ties_as_naive_loops_break_them(name):
    """Few distinct points: distances are exactly equal, and samples have copies in their own and other classes."""
    x = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 0, 1, 2, 1, 0, 2, 1, 0])]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0])
    assert as_sets(EVERY[name](x, labels)) == NAIVE[name.split()[0]](EVERY[name], x, labels)


def _parts(labels, anchor):
    others = [j for j in range(len(labels)) if j != anchor]
    return [j for j in others if labels[j] == labels[anchor]], [j for j in others if labels[j] != labels[anchor]]


def _cosines(x):
    unit = torch.nn.functional.normalize(x)
    return (unit @ unit.T).tolist()


def naive_multi_similarity(miner, x, labels):
    s, positives, negatives = _cosines(x), set(), set()
    for i in range(len(x)):
        mates, others = _parts(labels, i)
        if mates and others:
            positives |= {(i, p) for p in mates if s[i][p] - miner.epsilon < max(s[i][n] for n in others)}
            negatives |= {(i, n) for n in others if s[i][n] + miner.epsilon > min(s[i][p] for p in mates)}
    return [positives, negatives]


def naive_batch_hard(miner, x, labels):
    s, found = _cosines(x), set()
    for i in range(len(x)):
        mates, others = _parts(labels, i)
        if mates and others:
            found.add((i, min(mates, key=lambda j: s[i][j]), max(others, key=lambda j: s[i][j])))
    return [found]


def naive_margin(miner, x, labels):
    s, found = _cosines(x), set()
    for i, p, n in _all_triplets(labels):
        gap = math.sqrt(2 - 2 * s[i][n]) - math.sqrt(2 - 2 * s[i][p])
        if _is_wanted(miner, gap):
            found.add((i, p, n))
    return [found]


def _is_wanted(miner, gap):
    kinds = {"all": gap <= miner.margin, "hard": gap <= 0, "semihard": 0 < gap <= miner.margin}
    return kinds.get(miner.type_of_triplets, gap > miner.margin)


def naive_angular(miner, x, labels):
    found = set()
    for i, p, n in _all_triplets(labels):
        base, height = math.dist(x[i], x[p]), math.dist(x[n], (x[i] + x[p]) / 2)
        if math.atan2(base, 2 * height) > math.radians(miner.angle):
            found.add((i, p, n))
    return [found]


def _all_triplets(labels):
    for i in range(len(labels)):
        for p, n in itertools.product(*_parts(labels, i)):
            yield i, p, n


NAIVE = {
    "multi-similarity": naive_multi_similarity,
    "batch-hard": naive_batch_hard,
    "angular": naive_angular,
    **dict.fromkeys(TYPES, naive_margin),
}


@pytest.mark.parametrize("kind", TYPES)
@given(seed=st.integers(0, 10**6), labels=st.lists(st.integers(0, 4), min_size=1, max_size=70))
@settings(max_examples=8, deadline=None)
def test_hardest_is_the_nearest_negative_of_each_pair(kind, seed, labels):
    x, labels = points(len(labels), seed), torch.tensor(labels)
    unit = torch.nn.functional.normalize(x)
    nearest = {}
    for a, p, n in zip(*(part.tolist() for part in TripletMarginMiner(0.1, kind)(x, labels)), strict=True):
        if (a, p) not in nearest or unit[a] @ unit[n] > unit[a] @ unit[nearest[a, p]]:
            nearest[a, p] = n
    (found,) = as_sets(TripletMarginMiner(0.1, kind, negatives="hardest")(x, labels))
    assert found == {(a, p, n) for (a, p), n in nearest.items()}


@pytest.mark.parametrize("name", EVERY)
def test_several_labels_a_sample(name):
    generator = torch.Generator().manual_seed(4)
    hot = (torch.rand(14, 5, generator=generator) < 0.25).long()
    hot[0] = 0
    shares = hot @ hot.T > 0
    first, positive, *second, negative = EVERY[name](points(14), hot)
    assert len(first) > 0
    assert shares[first, positive].all()
    assert not (first == positive).any()
    again = second[0] if second else first
    assert not shares[again, negative].any()
    # A class each is the same as a label each.
    labels = torch.arange(14) % 5
    miners = copy.deepcopy(EVERY[name]), copy.deepcopy(EVERY[name])
    one_hot = miners[0](points(14), torch.nn.functional.one_hot(labels))
    assert all(torch.equal(a, b) for a, b in zip(one_hot, miners[1](points(14), labels), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_raised(name, dtype):
    x, labels = points(16).to(dtype), torch.tensor(LABELS["classes of all sizes"])
    miners = copy.deepcopy(EVERY[name]), copy.deepcopy(EVERY[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = miners[0](x, labels)
    assert all(torch.equal(a, b) for a, b in zip(low, miners[1](x.float(), labels), strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_indices_go_into_losses_of_both_libraries(name):
    x, labels = points(16).requires_grad_(), torch.tensor(LABELS["classes of all sizes"])
    indices = EVERY[name](x, labels)
    for loss in (
        CircleLoss(gamma=4),
        TripletMarginLoss(0.5),
        pml_losses.ContrastiveLoss(),
        pml_losses.TripletMarginLoss(),
    ):
        value = loss(x, labels, indices)
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
        assert torch.isfinite(value)
        assert gradient is not None


@pytest.mark.parametrize("name", EVERY)
def test_broken_input_is_named(name):
    miner, labels = EVERY[name], torch.tensor([0, 0, 1, 1])
    x = points(4)
    x[2, 1] = torch.nan
    with pytest.raises(InputError, match="embeddings holds NaN or infinity in 1 of 4 rows, first in row 2"):
        miner(x, labels)
    with pytest.raises(InputError, match="ref_emb holds NaN or infinity in 1 of 4 rows"):
        miner(points(4), labels, x, labels)
    with pytest.raises(InputError, match="labels has shape"):
        miner(points(4), labels[:3])
    with pytest.raises(InputError, match="class labels are integers"):
        miner(points(4), labels.float())
    with pytest.raises(InputError, match="ref_labels is None"):
        miner(points(4), labels, points(4))


@pytest.mark.parametrize("name", EVERY)
def test_state_survives_pickle(name):
    again = pickle.loads(pickle.dumps(EVERY[name]))
    assert repr(again) == repr(EVERY[name])
    x, labels = points(16), torch.arange(16) % 4
    first = copy.deepcopy(EVERY[name])(x, labels)
    assert all(torch.equal(a, b) for a, b in zip(first, again(x, labels), strict=True))


def test_bad_options_are_named():
    for make, message in (
        (lambda: TripletMarginMiner(0.1, "medium"), "type_of_triplets='medium' is not known"),
        (lambda: TripletMarginMiner(negatives="some"), "negatives='some' is not known"),
        (lambda: AngularMiner(90), r"angle=90 must lie in \[0, 90\)"),
        (lambda: DistanceWeightedMiner(cutoff=0), "cutoff=0 must be a finite number above 0"),
        (lambda: DistanceWeightedMiner(seed=-1), "seed=-1 must not be negative"),
    ):
        with pytest.raises(InputError, match=message):
            make()


# Distance-weighted draws


CROWD = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 5])
COPIES = 100  # of each reference, so that an anchor gets many draws at once


def draws(miner, x, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each anchor drew each positive and each negative, copies of a reference counted together."""
    positives, negatives = torch.zeros(2, 12, 12)
    for _ in range(steps):
        a, p, n = miner(x, CROWD, x.repeat(COPIES, 1), CROWD.repeat(COPIES))
        positives.index_put_((a, p % 12), torch.ones(len(a)), accumulate=True)
        negatives.index_put_((a, n % 12), torch.ones(len(a)), accumulate=True)
    return positives, negatives


def test_distance_weighted_draws_by_the_papers_weights(monkeypatch):
    """Frequencies against the weights as a loop computes them."""
    monkeypatch.undo()
    x, steps = points(12, seed=3, dim=4), 10
    unit = torch.nn.functional.normalize(x)
    positives, negatives = draws(DistanceWeightedMiner(seed=5), x, steps)
    weights = torch.zeros(12, 12)
    for i, j in itertools.product(range(12), range(12)):
        d = max(0.5, math.dist(unit[i], unit[j]))
        if CROWD[i] != CROWD[j] and d < 1.4:
            weights[i, j] = d ** (2 - 4) * (1 - d * d / 4) ** (-(4 - 3) / 2)
    mates = (CROWD[:, None] == CROWD).float()
    able = weights.sum(1) > 0
    assert able.sum() >= 9
    total = steps * COPIES * mates.sum(1) * able
    for counts, shares in ((negatives, weights), (positives, mates)):
        assert torch.equal(counts.sum(1), total)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-9)
        spread = (total[:, None] * shares * (1 - shares)).sqrt()
        assert ((counts - total[:, None] * shares).abs() <= 5 * spread + 1e-3).all()


def test_distance_weighted_draws_as_pytorch_metric_learning_does(monkeypatch):
    monkeypatch.undo()
    x = points(12, seed=3, dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = draws(DistanceWeightedMiner(), x, 4), draws(pml.DistanceWeightedMiner(), x, 4)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.sum(1), other.sum(1))
        assert ((mine - other).abs() <= 5 * (mine + other).sqrt() + 1e-6).all()


def test_distance_weighted_keeps_anchors_in_many_dimensions():
    """Their common factor leaves out anchors whose negatives are all rarer than another anchor's nearest one."""
    x, labels = points(40, dim=512).float(), torch.arange(40) // 2
    x[20:] = x[20:] * 0.7 + 9 * x[20]  # a crowd: its distances are rare beyond measure
    ours, theirs = DistanceWeightedMiner()(x, labels), pml.DistanceWeightedMiner()(x, labels)
    distances = torch.cdist(*[torch.nn.functional.normalize(x)] * 2)
    able = ((labels[:, None] != labels) & (distances < 1.4)).any(1).nonzero().flatten().tolist()
    assert sorted(set(ours[0].tolist())) == able
    assert set(theirs[0].tolist()) < set(able)


def test_distance_weighted_is_seeded_and_goes_on_from_its_state(monkeypatch):
    x, labels = points(30), torch.arange(30) % 6
    before = torch.random.get_rng_state()
    first, second, other = DistanceWeightedMiner(seed=1), DistanceWeightedMiner(seed=1), DistanceWeightedMiner(seed=2)
    one = [first(x, labels) for _ in range(3)]
    monkeypatch.setattr(comparison, "_FEWEST_ROWS", 7)  # other blocks, same draws
    two = [second(x, labels) for _ in range(2)]
    resumed = DistanceWeightedMiner(seed=1)
    resumed.load_state_dict(second.state_dict())
    two.append(resumed(x, labels))
    assert all(torch.equal(a, b) for s, t in zip(one, two, strict=True) for a, b in zip(s, t, strict=True))
    assert not torch.equal(one[0][2], one[1][2])
    assert not torch.equal(one[0][2], other(x, labels)[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_distance_weighted_without_anything_near():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    assert all(len(part) == 0 for part in DistanceWeightedMiner()(x, torch.tensor([0, 0, 1, 1])))


# Parts


@given(st.integers(1, 5), st.integers(1, 200), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_row_minimum_is_the_first(height, width, seed):
    matrix = torch.randint(6, (height, width), generator=torch.Generator().manual_seed(seed)).float()
    values, columns = row_minimum(matrix)
    for row, value, column in zip(matrix.tolist(), values.tolist(), columns.tolist(), strict=True):
        assert value == min(row)
        assert column == row.index(value)


@given(st.integers(0, 5), st.integers(1, 30), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_marked_is_nonzero(height, width, share, seed):
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    found = marked(mask)
    assert all(torch.equal(a, b) for a, b in zip(found, mask.nonzero(as_tuple=True), strict=True))


def test_row_extreme_of_rows_without_pairs():
    values, columns = row_extreme(torch.tensor([2.0, 1.0, 1.0]), torch.tensor([0, 2, 2]), torch.tensor([5, 8, 6]), 3)
    assert values.tolist() == [2.0, math.inf, 1.0]
    assert columns[[0, 2]].tolist() == [5, 6]

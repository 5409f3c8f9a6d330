"""A target cut into tiles says the same as the dense masks it stands for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.losses.engine import FunctionTarget, LabelTarget, MultiHotTarget, PairTarget, RelevanceTarget

CPU = torch.device("cpu")
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def cuts(length: int, points: list[int]) -> list[slice]:
    edges = sorted({0, length, *(p % (length + 1) for p in points)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


tilings = st.tuples(st.lists(st.integers(0, 50), max_size=3), st.lists(st.integers(0, 50), max_size=3))


def check(target, positive, negative, tiling, relevance=None):
    """Every tile equals its part of the dense matrices, as masks and as lists of pairs."""
    shape = positive.shape
    everything = [(slice(None), slice(None))]
    tiles = [(r, c) for r in cuts(shape[0], tiling[0]) for c in cuts(shape[1], tiling[1])]
    for rows, columns in everything + tiles:
        tile = target.tile(rows, columns)
        want, reject = positive[rows, columns], negative[rows, columns]
        assert tile.shape == tuple(want.shape)
        assert torch.equal(tile.positive, want)
        assert torch.equal(tile.negative, reject)
        assert pair_set(tile.positive_pairs()) == pair_set(want.nonzero(as_tuple=True))
        assert pair_set(tile.non_negative_pairs()) == pair_set((~reject).nonzero(as_tuple=True))
        assert torch.equal(tile.has_positive(), want.any(1))
        assert torch.equal(tile.has_negative(), reject.any(1))
        pairs = tile.positive_pairs()
        assert torch.equal(pairs[0], pairs[0].sort().values)
        grades = (want if relevance is None else relevance[rows, columns]).double()
        assert torch.equal(tile.relevance(torch.float64)[want], grades[want])
        assert torch.equal(tile.positive_weights(pairs, torch.float64), grades[pairs])


def pair_set(pairs) -> list[tuple[int, int]]:
    return sorted(zip(*(index.tolist() for index in pairs), strict=True))


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, classes=st.integers(1, 6), seed=seeds, tiling=tilings)
def test_labels_of_two_sets(rows, columns, classes, seed, tiling):
    g = torch.Generator().manual_seed(seed)
    row_labels = torch.randint(-classes, classes, (rows,), generator=g) + 2**60
    column_labels = torch.randint(-classes, classes, (columns,), generator=g) + 2**60
    same = row_labels[:, None] == column_labels
    check(LabelTarget(row_labels, column_labels), same, ~same, tiling)


@settings(max_examples=60, deadline=None)
@given(rows=sizes, before=st.integers(0, 3), after=st.integers(0, 3), seed=seeds, tiling=tilings)
def test_labels_of_a_set_with_itself(rows, before, after, seed, tiling):
    g = torch.Generator().manual_seed(seed)
    column_labels = torch.randint(4, (before + rows + after,), generator=g)
    row_labels = column_labels[before : before + rows]
    own = torch.zeros(rows, len(column_labels), dtype=torch.bool)
    own[torch.arange(rows), before + torch.arange(rows)] = True
    same = row_labels[:, None] == column_labels
    check(LabelTarget(row_labels, column_labels, self_column=before), same & ~own, ~same, tiling)


@settings(max_examples=40, deadline=None)
@given(rows=sizes, columns=sizes, width=st.integers(1, 5), seed=seeds, tiling=tilings, is_self=st.booleans())
def test_multi_hot_labels(rows, columns, width, seed, tiling, is_self):
    g = torch.Generator().manual_seed(seed)
    row_labels = torch.rand(rows, width, generator=g) < 0.3
    column_labels = row_labels if is_self else torch.rand(columns, width, generator=g) < 0.3
    shared = (row_labels[:, None] & column_labels).any(2)
    own = torch.eye(*shared.shape, dtype=torch.bool) if is_self else torch.zeros_like(shared)
    target = MultiHotTarget(row_labels, column_labels, 0 if is_self else None)
    check(target, shared & ~own, ~shared & ~own, tiling)


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, count=st.integers(0, 30), seed=seeds, tiling=tilings)
def test_mined_pairs(rows, columns, count, seed, tiling):
    g = torch.Generator().manual_seed(seed)
    lists = [tuple(torch.randint(n, (count,), generator=g) for n in (rows, columns)) for _ in range(2)]
    positive, negative = torch.zeros(2, rows, columns, dtype=torch.bool)
    positive[lists[0]], negative[lists[1]] = True, True
    check(PairTarget(*lists, (rows, columns)), positive, negative, tiling)


@settings(max_examples=80, deadline=None)
@given(
    rows=sizes,
    columns=sizes,
    seed=seeds,
    tiling=tilings,
    layout=st.sampled_from(["diagonal", "dense", "coo", "csr", "boolean", "boolean coo"]),
    mask=st.sampled_from([None, "dense", "coo", "csr"]),
    ids=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_relevance(rows, columns, seed, tiling, layout, mask, ids):
    g = torch.Generator().manual_seed(seed)
    grades = torch.rand(rows, columns, generator=g, dtype=torch.float64)
    grades = grades * (torch.rand(rows, columns, generator=g) < 0.4)
    if layout == "diagonal":
        grades = torch.eye(rows, columns, dtype=torch.float64)
    if "boolean" in layout:
        grades = (grades > 0).double()
    given_grades = {
        "diagonal": lambda: None,
        "dense": lambda: grades,
        "coo": grades.to_sparse_coo,
        "csr": grades.to_sparse_csr,
        "boolean": lambda: grades.bool(),
        "boolean coo": lambda: grades.bool().to_sparse_coo(),
    }[layout]()
    ignored = torch.rand(rows, columns, generator=g) < (0.3 if mask else 0)
    given_mask = {
        None: lambda: None,
        "dense": lambda: ignored,
        "coo": lambda: ignored.float().to_sparse_coo(),
        "csr": lambda: ignored.float().to_sparse_csr(),
    }[mask]()
    row_ids, column_ids = (torch.randint(3 if ids else 10**6, (n,), generator=g) for n in (rows, columns))
    same_ids = ((row_ids, column_ids),) if ids else ()
    positive = grades > 0
    counted = ~ignored & ~((row_ids[:, None] == column_ids) & ~positive & ids)
    target = RelevanceTarget(given_grades, (rows, columns), CPU, given_mask, same_ids)
    check(target, positive & counted, ~positive & counted, tiling, grades)


@settings(max_examples=30, deadline=None)
@given(rows=sizes, columns=sizes, seed=seeds, tiling=tilings)
def test_function_of_the_tile(rows, columns, seed, tiling):
    g = torch.Generator().manual_seed(seed)
    positive, negative = torch.rand(2, rows, columns, generator=g) < 0.4
    target = FunctionTarget(lambda r, c: (positive[r, c], negative[r, c]))
    check(target, positive, negative, tiling)

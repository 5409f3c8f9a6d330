"""Rows of classes: an epoch draws each row at most once, and all rows of a class over its visits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.miners.class_rows import ClassRows


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(-5, 5), min_size=1, max_size=60), samples=st.integers(1, 4), seed=st.integers(0, 9))
def test_visits_draw_different_rows_of_their_class(labels, samples, seed):
    rows = ClassRows(np.array(labels))
    visits = rows.visits(samples, once=False)
    assert visits.tolist() == [max(1, labels.count(label) // samples) for label in sorted(set(labels))]
    groups = list(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(rows)), visits))[:, None])
    drawn = rows.draw(groups, samples, np.random.default_rng(seed))
    used = [row for chosen in drawn for row in chosen]
    assert len(used) == len(set(used))
    for group, chosen in zip(groups, drawn, strict=True):
        label = rows.labels[group[0]]
        assert len(chosen) == min(samples, labels.count(label))
        assert all(labels[row] == label for row in chosen)


def test_one_visit_an_epoch_takes_a_random_choice():
    rows = ClassRows(np.zeros(100, dtype=int))
    assert rows.visits(4, once=True).tolist() == [1]
    first, second = (rows.draw([np.array([0])], 4, np.random.default_rng(seed))[0] for seed in (0, 1))
    assert len(set(first)) == 4
    assert first != second


def test_labels_may_be_strings_and_huge():
    assert ClassRows(np.array(["b", "a", "b"])).classes.tolist() == [1, 0, 1]
    assert ClassRows(np.array([2**60 + 1, 2**60, 2**60 + 1])).classes.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [np.zeros((2, 2), dtype=int), np.array([0.5, 1.0]), np.array([], dtype=int)])
def test_labels_that_are_not_one_a_row_are_refused(labels):
    with pytest.raises(InputError, match="one integer or string a row"):
        ClassRows(labels)

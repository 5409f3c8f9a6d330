"""Draws have the shares that their strategy says, whatever the portions in which rows come."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nearfar.miners.negative_sampling import sample

ROWS = 4000
SCORES = np.array([0.9, 0.5, 0.2, 0.1, -0.4])
ALLOWED = np.array([True, False, True, True, True])


def shares(count, **options):
    """How often each column is taken."""
    columns = sample(np.tile(SCORES, (ROWS, 1)), np.tile(ALLOWED, (ROWS, 1)), count, **options)
    return np.array([(columns == column).any(axis=1).mean() for column in range(len(SCORES))])


def test_random_takes_every_allowed_column_alike():
    found = shares(2, sampling="random")
    np.testing.assert_allclose(found, [0.5, 0, 0.5, 0.5, 0.5], atol=5 * np.sqrt(0.25 / ROWS))


def test_softmax_draws_one_after_the_other_in_proportion_to_the_exponential():
    temperature = 0.5
    weights = np.exp(SCORES / temperature) * ALLOWED
    expected = np.zeros(len(SCORES))
    for first, second in permutations(np.flatnonzero(ALLOWED), 2):
        chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        expected[[first, second]] += chance
    found = shares(2, sampling="softmax", temperature=temperature)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / ROWS))


@given(
    allowed=arrays(bool, (3, 6)),
    count=st.integers(1, 8),
    sampling=st.sampled_from(["top", "random", "softmax"]),
    seed=st.integers(0, 9),
)
def test_what_every_strategy_keeps(allowed, count, sampling, seed):
    scores = np.sort(np.random.default_rng(0).normal(size=(3, 6)), axis=1)[:, ::-1]
    columns = sample(scores, allowed, count, sampling=sampling, seed=seed)
    assert columns.shape == (3, count)
    for row in range(3):
        taken = columns[row][columns[row] >= 0].tolist()
        assert taken == sorted(set(taken))
        assert all(allowed[row, taken])
        assert len(taken) == min(count, allowed[row].sum())
        assert (columns[row, len(taken) :] == -1).all()
        alone = sample(
            scores[row : row + 1], allowed[row : row + 1], count, sampling=sampling, seed=seed, numbers=[row]
        )
        assert alone[0].tolist() == columns[row].tolist()

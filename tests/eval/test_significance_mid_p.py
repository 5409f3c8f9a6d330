"""Mid-p of the randomisation test: McNemar's for values of 0 and 1, and the choice of it in a comparison."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from nearfar.eval import RankingResult, compare_runs
from nearfar.eval.paired_tests import FlipTest, randomisation_test, sum_over_units

ZERO, ONE = np.array([0]), np.array([1])


def mcnemar(wins: int, losses: int) -> tuple[float, float]:
    """Exact p and mid-p of values of 0 and 1, as Fagerland et al. (2013) give them."""
    fewer, count = min(wins, losses), wins + losses
    same = float(scipy.stats.binom.pmf(fewer, count, 0.5))
    if wins == losses:
        return 1.0, 1 - same / 2
    exact = 2 * float(scipy.stats.binom.cdf(fewer, count, 0.5))
    return exact, exact - same


def hits(wins: int, losses: int, same: int = 20) -> np.ndarray:
    """R@1 of two runs, (Q, 2): the second wins some queries, loses some, and both find the rest."""
    return np.array([[0.0, 1.0]] * wins + [[1.0, 0.0]] * losses + [[1.0, 1.0]] * same)


def outcome(values: np.ndarray, permutations: int = 10_000) -> FlipTest:
    return randomisation_test(sum_over_units(values, np.arange(len(values))), ONE, ZERO, permutations, seed=0)


@pytest.mark.parametrize(("wins", "losses"), [(7, 1), (5, 5), (3, 0), (6, 4), (0, 1), (12, 1)])
def test_all_patterns_give_mcnemars(wins: int, losses: int) -> None:
    found = outcome(hits(wins, losses))
    assert (found.p[0], found.mid_p[0]) == pytest.approx(mcnemar(wins, losses), rel=1e-12)


def test_drawn_patterns_give_mcnemars_within_their_error() -> None:
    found = outcome(hits(70, 50), permutations=100_000)
    for own, exact in zip((found.p[0], found.mid_p[0]), mcnemar(70, 50), strict=True):
        assert own == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 100_000))


def test_sums_that_rounding_parts_are_equal() -> None:
    values = 0.1 * hits(26, 14, 0)  # no sum of tenths is held exactly
    found = outcome(values, permutations=100_000)
    exact, mid = mcnemar(26, 14)
    assert found.p[0] - found.mid_p[0] == pytest.approx(exact - mid, abs=0.002)


def test_where_no_two_sums_are_equal_it_leaves_out_half_of_the_observed_pattern() -> None:
    found = outcome(np.random.default_rng(0).random((11, 2)))
    assert found.mid_p[0] == pytest.approx(found.p[0] - 2**-11, rel=1e-12)


def test_it_decides_where_asked_for() -> None:
    ids = [f"q{i}" for i in range(29)]
    wins, losses = 8, 1
    columns = hits(wins, losses).T
    runs = {
        name: RankingResult(ids, {"R@1": column}, {}, [], [], 0.0, 29)
        for name, column in zip(("old", "new"), columns, strict=True)
    }
    rows = {test: compare_runs(runs, baseline="old", test=test).rows[0] for test in ("randomisation", "mid-p", "t")}
    exact, mid = mcnemar(wins, losses)
    assert [row.p_mid for row in rows.values()] == pytest.approx([mid] * 3)
    assert rows["mid-p"].p_value == pytest.approx(mid)
    assert rows["randomisation"].p_value == pytest.approx(exact)
    assert rows["mid-p"].smallest_p == rows["randomisation"].smallest_p / 2 == 2**-9
    few = {
        name: RankingResult(ids, {"R@1": column}, {}, [], [], 0.0, 29)
        for name, column in zip("ab", hits(4, 0, 25).T, strict=True)
    }
    assert "p cannot fall below 0.062" in compare_runs(few, test="mid-p").verdict()[0]

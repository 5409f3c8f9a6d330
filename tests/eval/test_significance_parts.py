"""The parts of a comparison against scipy and naive enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats._resampling import BootstrapResult

import nearfar.eval.paired_tests as paired_tests
from nearfar.errors import InputError
from nearfar.eval.intervals import bca_interval, bootstrap_means, jackknife_means, minimum_detectable_difference
from nearfar.eval.multiple_tests import benjamini_hochberg, holm
from nearfar.eval.paired_tests import paired_t_test, randomisation_test, sum_over_units
from nearfar.eval.student_t import t_quantile, two_sided_p

ZERO, ONE = np.array([0]), np.array([1])


def reciprocal_ranks(seed: int, queries: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=queries)
    ranks = 1 + np.floor(np.exp(1.2 * (ease + shift + rng.normal(size=queries)))).clip(max=1000)
    return 1 / ranks


def pair_of_runs(queries: int, shift: float = 0.15) -> np.ndarray:
    """Values (Q, 2) of two runs."""
    return np.column_stack([reciprocal_ranks(1, queries), reciprocal_ranks(2, queries, shift)])


@pytest.mark.parametrize("df", [1, 2, 3, 7.5, 29, 199, 10_000, 1_000_000])
def test_student_t_is_scipys(df: float) -> None:
    for t in [0.0, 1e-9, 0.3, 1.0, 1.96, -2.5, 6.0, 30.0]:
        assert two_sided_p(t, df) == pytest.approx(2 * scipy.stats.t.sf(abs(t), df), rel=1e-8)
    for level in [1e-6, 0.025, 0.2, 0.5, 0.8, 0.975, 0.9999]:
        assert t_quantile(level, df) == pytest.approx(scipy.stats.t.ppf(level, df), rel=1e-8, abs=1e-12)


def test_an_infinite_t_has_no_tail() -> None:
    assert two_sided_p(float("inf"), 3) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_follow_their_definitions(p_values: list[float]) -> None:
    p = np.array(p_values)
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p), rtol=1e-12, atol=0)
    ordered = sorted(range(len(p)), key=lambda i: p[i])
    for place, i in enumerate(ordered):
        wanted = max((len(p) - earlier) * p[j] for earlier, j in enumerate(ordered[: place + 1]))
        assert holm(p)[i] == pytest.approx(min(1.0, wanted), rel=1e-12)


def test_corrections_of_nothing_and_of_nonsense() -> None:
    assert len(holm([])) == 0
    assert len(benjamini_hochberg([])) == 0
    for wrong in ([0.5, 1.2], [float("nan")], [[0.1]]):
        with pytest.raises(InputError, match="p-value"):
            holm(wrong)


@pytest.mark.parametrize("queries", [2, 25, 400])
def test_paired_t_is_scipys(queries: int) -> None:
    values = pair_of_runs(queries)
    found = paired_t_test(sum_over_units(values, np.arange(queries)), ONE, ZERO)
    assert found.p[0] == pytest.approx(scipy.stats.ttest_rel(values[:, 1], values[:, 0]).pvalue, rel=1e-9)
    assert found.standard_error[0] == pytest.approx(scipy.stats.sem(values[:, 1] - values[:, 0]), rel=1e-9)


def test_paired_t_with_clusters_is_the_cluster_robust_formula() -> None:
    values = pair_of_runs(300)
    clusters = np.random.default_rng(3).integers(0, 40, 300)
    found = paired_t_test(sum_over_units(values, clusters), ONE, ZERO)
    change = values[:, 1] - values[:, 0]
    meat = sum(((change - change.mean())[clusters == c].sum()) ** 2 for c in range(40))
    error = np.sqrt(40 / 39 * meat) / 300
    assert found.standard_error[0] == pytest.approx(error, rel=1e-9)
    assert found.p[0] == pytest.approx(2 * scipy.stats.t.sf(abs(change.mean()) / error, 39), rel=1e-9)


def test_paired_t_of_differences_that_do_not_vary() -> None:
    values = np.array([[0.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.25, 0.75, 0.25]])
    found = paired_t_test(sum_over_units(values, np.arange(3)), np.array([1, 2]), np.array([0, 0]))
    assert found.p.tolist() == [0.0, 1.0]
    assert found.standard_error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("queries", [1, 2, 5, 11])
def test_few_queries_are_tested_exactly(queries: int) -> None:
    values = pair_of_runs(queries)
    change = values[:, 1] - values[:, 0]
    signed = [abs(sum(s * d for s, d in zip(signs, change, strict=True))) for signs in product((1, -1), repeat=queries)]
    wanted = np.mean([total >= abs(change.sum()) - 1e-12 for total in signed])
    found = randomisation_test(sum_over_units(values, np.arange(queries)), ONE, ZERO, 10_000, seed=0)
    assert found.p[0] == pytest.approx(wanted, rel=1e-12)
    assert found.smallest[0] == min(1, 2 / 2 ** np.count_nonzero(change))


def test_exact_p_is_scipys() -> None:
    values = pair_of_runs(11)
    oracle = scipy.stats.permutation_test(
        (values[:, 1] - values[:, 0],), np.sum, permutation_type="samples", n_resamples=10_000
    )
    found = randomisation_test(sum_over_units(values, np.arange(11)), ONE, ZERO, 10_000, seed=0)
    assert found.p[0] == pytest.approx(oracle.pvalue, rel=1e-12)


def test_ties_between_runs_do_not_count_as_units() -> None:
    values = np.zeros((500, 2))
    values[:6, 1] = 1.0  # six of 500 queries differ, all the same way
    found = randomisation_test(sum_over_units(values, np.arange(500)), ONE, ZERO, 1000, seed=0)
    assert found.p[0] == found.smallest[0] == 2 / 2**6


def test_many_queries_are_not_gone_through() -> None:
    values = pair_of_runs(3000)
    found = randomisation_test(sum_over_units(values, np.arange(3000)), ONE, ZERO, 1000, seed=0)
    assert found.smallest[0] == 1 / 1001
    assert found.p[0] < 0.01


@pytest.mark.parametrize("discrete", [False, True])
def test_drawn_p_is_scipys_within_its_error(discrete: bool) -> None:
    values = pair_of_runs(120)
    if discrete:
        values = (values == 1.0).astype(float)
    oracle = scipy.stats.permutation_test(
        (values[:, 1] - values[:, 0],), lambda d, axis: d.mean(axis=axis), permutation_type="samples",
        n_resamples=40_000, vectorized=True, rng=np.random.default_rng(5),
    )  # fmt: skip
    found = randomisation_test(sum_over_units(values, np.arange(120)), ONE, ZERO, 40_000, seed=0)
    p = oracle.pvalue
    assert 0.001 < p < 0.9
    assert found.p[0] == pytest.approx(p, abs=5 * np.sqrt(2 * p * (1 - p) / 40_000))
    assert found.smallest[0] == pytest.approx(1 / 40_001)


def test_discrete_statistics_equal_to_the_observed_one_are_counted() -> None:
    # 40 queries differ by exactly 0.1, which no sum holds exactly: the exact p is binomial.
    values = np.zeros((40, 2))
    values[:26, 1], values[26:, 0] = 0.1, 0.1
    oracle = scipy.stats.binomtest(26, 40).pvalue
    found = randomisation_test(sum_over_units(values, np.arange(40)), ONE, ZERO, 100_000, seed=0)
    assert found.p[0] == pytest.approx(oracle, abs=5 * np.sqrt(oracle / 100_000))


def test_flips_of_clusters_are_flips_of_their_sums() -> None:
    values = pair_of_runs(60)
    clusters = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6))
    sums = np.array([(values[:, 1] - values[:, 0])[clusters == c].sum() for c in range(10)])
    signed = np.array(list(product((1, -1), repeat=10))) @ sums
    found = randomisation_test(sum_over_units(values, clusters), ONE, ZERO, 10_000, seed=0)
    assert found.p[0] == pytest.approx(np.mean(np.abs(signed) >= abs(sums.sum()) - 1e-12), rel=1e-12)


def test_blocks_and_other_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.column_stack([pair_of_runs(90), reciprocal_ranks(9, 90)])
    units = sum_over_units(values, np.arange(90))
    left, right = np.array([1, 2, 2]), np.array([0, 0, 1])
    together = randomisation_test(units, left, right, 2000, seed=4).p
    alone = [randomisation_test(units, left[i : i + 1], right[i : i + 1], 2000, seed=4).p[0] for i in range(3)]
    assert together.tolist() == alone
    assert together[0] != randomisation_test(units, left, right, 2000, seed=5).p[0]
    means = bootstrap_means(units, 500, seed=4)
    monkeypatch.setattr(paired_tests, "_BLOCK_BYTES", 90 * 8 * 7)
    assert list(paired_tests.row_blocks(16, 90)) == [7, 7, 2]
    assert randomisation_test(units, left, right, 2000, seed=4).p.tolist() == together.tolist()
    np.testing.assert_allclose(bootstrap_means(units, 500, seed=4), means, rtol=1e-12)


@pytest.mark.parametrize("queries", [30, 300])
def test_bca_of_the_same_replicates_is_scipys(queries: int) -> None:
    values = pair_of_runs(queries)
    units = sum_over_units(values, np.arange(queries))
    means = bootstrap_means(units, 3000, seed=0)
    replicates = means[:, 1] - means[:, 0]
    change = values[:, 1] - values[:, 0]
    jackknife = jackknife_means(change, units.sizes)
    oracle = scipy.stats.bootstrap(
        (change,), np.mean, n_resamples=0, method="BCa",
        bootstrap_result=BootstrapResult(None, replicates, float(replicates.std())),
    ).confidence_interval  # fmt: skip
    found = bca_interval(float(change.mean()), replicates, jackknife, 0.95, expand=False)
    assert found == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    wider = bca_interval(float(change.mean()), replicates, jackknife, 0.95)
    assert wider[0] < found[0]
    assert wider[1] > found[1]


def test_bca_is_scipys_own_within_its_error() -> None:
    values = pair_of_runs(200)
    change = values[:, 1] - values[:, 0]
    units = sum_over_units(values, np.arange(200))
    means = bootstrap_means(units, 20_000, seed=0)
    found = bca_interval(
        float(change.mean()), means[:, 1] - means[:, 0], jackknife_means(change, units.sizes), 0.95, expand=False
    )
    oracle = scipy.stats.bootstrap((change,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1))
    low, high = oracle.confidence_interval
    assert found == pytest.approx((low, high), abs=0.03 * (high - low))


def test_clusters_are_resampled_whole() -> None:
    values = np.column_stack([np.repeat([0.0, 1.0, 0.4], [2, 3, 5]), np.zeros(10)])
    means = bootstrap_means(sum_over_units(values, np.repeat([0, 1, 2], [2, 3, 5])), 4000, seed=0)
    sums, sizes = np.array([0.0, 3.0, 2.0]), np.array([2, 3, 5])
    possible = {round(sums[list(c)].sum() / sizes[list(c)].sum(), 9) for c in product(range(3), repeat=3)}
    assert set(np.round(means[:, 0], 9).tolist()) == possible


def test_jackknife_leaves_out_each_unit() -> None:
    values, codes = np.arange(10.0)[:, None] ** 2, np.repeat([0, 1, 2], [2, 3, 5])
    units = sum_over_units(values, codes)
    wanted = [values[codes != c].mean() for c in range(3)]
    assert jackknife_means(units.sums[:, 0], units.sizes) == pytest.approx(wanted)


def test_the_interval_of_no_spread_is_a_point() -> None:
    assert bca_interval(0.5, np.full(100, 0.5), np.full(9, 0.5), 0.95) == (0.5, 0.5)


def test_a_test_finds_the_detectable_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    spread, queries = 0.3, 60
    shift = minimum_detectable_difference(spread / np.sqrt(queries), queries - 1, 0.05)
    samples = rng.normal(shift, spread, (10_000, queries))
    found = scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)

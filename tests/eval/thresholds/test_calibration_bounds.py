"""The bounds and units behind calibrated thresholds, against enumeration, scipy and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from nearfar.eval.thresholds.bounds import MeanTest, allowed_failures, binomial_tail, smallest_level
from nearfar.eval.thresholds.class_rates import (
    NOWHERE,
    TolerancePlan,
    certified_thresholds,
    class_rates,
    reference_rates,
    reference_thresholds,
)
from nearfar.eval.thresholds.units import (
    SLACK,
    class_set,
    cross_scores,
    just_above,
    matchings,
    positive_scores,
    smallest_threshold,
)


def uneven_set(seed: int = 0, classes: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Classes of one to five samples, in shuffled order."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(1, 6, classes))
    points = rng.normal(size=(classes, 6))[labels] + 0.5 * rng.normal(size=(len(labels), 6))
    order = rng.permutation(len(labels))
    return points[order], labels[order]


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.8])
def test_the_expected_fortune_under_the_claim_is_exactly_one(mean: float) -> None:
    units = 6
    test = MeanTest.of(mean, units, 0.05)
    expected = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=units):
        chance = math.prod(mean if x else 1 - mean for x in outcome)
        expected += chance * math.exp(test.log_fortune(np.array([outcome])))
    assert expected == pytest.approx(1.0, abs=1e-12)


def test_the_fortune_is_the_mean_over_stakes_and_rounds_of_plain_products() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((3, 20)) * 0.2
    test = MeanTest.of(0.15, 20, 0.05)
    fortunes = [
        math.prod(1 + stake * (0.15 - x) for x in row) for stake in test.stakes.tolist() for row in values.tolist()
    ]
    assert math.exp(test.log_fortune(values)) == pytest.approx(np.mean(fortunes), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.005, 0.9), st.integers(1, 400))
def test_larger_values_never_raise_the_fortune(seed: int, mean: float, units: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((2, units))
    larger = values + (1 - values) * rng.random((2, units))
    test = MeanTest.of(mean, units, 0.05)
    assert test.log_fortune(larger) <= test.log_fortune(values) + 1e-9


@pytest.mark.parametrize("shape", [(0.05, 0.95), (0.5, 9.5), (5.0, 95.0)])
def test_a_true_claim_is_refuted_at_most_delta_of_the_time(shape: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    mean = shape[0] / sum(shape)
    test = MeanTest.of(mean, 150, 0.1)
    refuted = sum(test.refutes(rng.beta(*shape, (1, 150))) for _ in range(2000))
    assert binomial_tail(refuted, 2000, 0.1) > 1e-3


def test_without_failures_the_bound_comes_close_to_the_exact_binomial() -> None:
    needed = smallest_level(lambda level: MeanTest.of(level, 200, 0.05).refutes(np.zeros((1, 200))))
    exact = 1 - 0.05 ** (1 / 200)
    assert needed is not None
    assert exact <= needed <= 1.1 * exact


@given(st.integers(1, 500), st.floats(0.01, 0.5), st.floats(0.01, 0.3))
@settings(max_examples=60, deadline=None)
def test_allowed_failures_is_the_binomial_quantile(units: int, share: float, delta: float) -> None:
    found = allowed_failures(units, share, delta)
    assert found == -1 or binom.cdf(found, units, share) <= delta
    assert binom.cdf(found + 1, units, share) > delta


def test_fifty_nine_classes_are_what_five_percent_at_five_percent_takes() -> None:
    assert allowed_failures(58, 0.05, 0.05) == -1
    assert allowed_failures(59, 0.05, 0.05) == 0


def test_the_plan_splits_delta_between_the_count_and_the_undetected() -> None:
    for classes in (120, 500, 3000):
        plan = TolerancePlan.of(classes, 0.05, 0.1)
        assert plan is not None
        spare = allowed_failures(classes, 0.05, 0.05) - plan.failures
        undetected = classes * 0.05 * plan.level / (spare + 1)  # Markov
        assert binom.cdf(plan.failures + spare, classes, 0.05) + undetected <= 0.1 + 1e-12
    assert TolerancePlan.of(50, 0.05, 0.05) is None


@pytest.mark.parametrize("classes", [2, 3, 8, 9, 20, 21])
def test_matchings_are_disjoint_and_never_repeat_a_pair(classes: int) -> None:
    rounds = matchings(np.arange(classes) * 10, np.random.default_rng(0), 100)
    assert rounds.shape == (classes - 1 + classes % 2, classes // 2, 2)
    met = set()
    for pairs in rounds.tolist():
        players = [player for pair in pairs for player in pair]
        assert len(set(players)) == len(players)
        met |= {frozenset(pair) for pair in pairs}
    assert len(met) == classes * (classes - 1) // 2


def test_unit_shares_are_those_of_plain_loops() -> None:
    points, labels = uneven_set()
    found = class_set(points, labels)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    groups = [unit[labels == name] for name in found.names]
    rounds = matchings(np.arange(len(groups)), np.random.default_rng(0), 3)
    shares = cross_scores(found, rounds).share_at_least(0.2)
    for row, pairs in zip(shares, rounds.tolist(), strict=True):
        for share, (a, b) in zip(row, pairs, strict=True):
            assert share == pytest.approx(np.mean([x @ y >= 0.2 for x in groups[a] for y in groups[b]]))
    large = np.flatnonzero(found.sizes >= 2)
    inside = positive_scores(found, large).share_at_least(0.6)[0]
    for share, code in zip(inside, large.tolist(), strict=True):
        assert share == pytest.approx(np.mean([x @ y >= 0.6 for x, y in itertools.combinations(groups[code], 2)]))


def test_class_rates_are_those_of_plain_loops() -> None:
    points, labels = uneven_set(3)
    found = class_set(points, labels)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    groups = [unit[labels == name] for name in found.names]
    wanted = [
        np.mean([(a @ b.T >= 0.3).mean() for other, b in enumerate(groups) if other != code])
        for code, a in enumerate(groups)
    ]
    np.testing.assert_allclose(class_rates(found, 0.3), wanted, atol=1e-12)
    reference = unit[:17]
    against = [(a @ reference.T >= 0.3).mean() for a in groups]
    np.testing.assert_allclose(reference_rates(found, reference, 0.3), against, atol=1e-12)


def test_reference_thresholds_are_the_smallest_that_keep_alpha() -> None:
    points, labels = uneven_set(4)
    found = class_set(points, labels)
    reference = class_set(*uneven_set(5)).unit
    own = reference_thresholds(found, reference, 0.1)
    for code, threshold in enumerate(own.tolist()):
        assert reference_rates(found, reference, threshold)[code] <= 0.1
        assert reference_rates(found, reference, threshold - 2e-6)[code] > 0.1


@pytest.mark.parametrize("alpha", [0.15, 0.4])
def test_certified_class_thresholds_are_those_of_a_search_by_bisection(alpha: float) -> None:
    points, labels = uneven_set(6, classes=60)
    found = class_set(points, labels)
    test = MeanTest.of(alpha, 59, 0.05)
    groups = np.split(found.unit, found.starts[1:])
    for code, threshold in enumerate(certified_thresholds(found, alpha, 0.05).tolist()):

        def holds(at: float, code: int = code) -> bool:
            shares = [(groups[code] @ b.T >= at - SLACK).mean() for d, b in enumerate(groups) if d != code]
            return test.refutes(np.array([shares]))

        wanted = smallest_threshold(holds)
        assert threshold == pytest.approx(NOWHERE if wanted is None else wanted, abs=2e-6)


def test_no_class_is_certified_by_too_few_others() -> None:
    found = class_set(*uneven_set())
    assert (certified_thresholds(found, 0.01, 0.05) == NOWHERE).all()


def test_thresholds_lie_above_the_rounding_of_scores() -> None:
    assert just_above(0.25) == pytest.approx(0.250001, abs=1e-12)
    assert smallest_threshold(lambda t: t >= 0.1234561) == 0.123457
    assert smallest_threshold(lambda t: True) == -1.0
    assert smallest_threshold(lambda t: False) is None

"""Promises kept on fresh data sets with known true risks; benchmarks/calibration.py does 1,000 of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.calibration import Case, Circle, Sphere, measure, pair_case, query_case, reference_case

ALIKE = Circle("alike", crowded=0.0, spread_sigma=0.0)
DRAWS = 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: pair_case(Circle(), "far", 0.05, 200), id="far"),
        pytest.param(lambda: pair_case(Circle(), "miss", 0.1, 200), id="miss"),
        pytest.param(lambda: pair_case(Circle("tight circle", spread=0.03), "precision", 0.15, 200), id="precision"),
        pytest.param(lambda: pair_case(ALIKE, "class_far", 0.15, 150), id="class_far"),
        pytest.param(lambda: reference_case(Sphere(), 0.05, 100, 200), id="class_far-reference"),
        pytest.param(lambda: query_case(0.05, 300, 1), id="no_answer"),
        pytest.param(lambda: query_case(0.05, 300, 5), id="no_answer-groups"),
    ],
)
def test_no_more_than_delta_of_the_promises_are_broken(case: Callable[[], Case]) -> None:
    row = measure(case(), DRAWS)
    assert row["draws"] == DRAWS
    assert row["refused"] == 0
    assert row["p_value_broken_above_delta"] > 0.01, row


def test_the_series_of_the_circle_agree_with_simulation() -> None:
    circle = Circle()
    truth, rng = circle.truth(), np.random.default_rng(0)
    points = circle.draw(200_000, rng)
    across = (points[0::2, 0] * points[1::2, 0]).sum(axis=1)
    within = (points[:, 0] * points[:, 1]).sum(axis=1)
    for threshold in (0.9, 0.99, 0.999):
        assert truth.far(threshold) == pytest.approx((across >= threshold).mean(), abs=4e-3)
        assert truth.miss(threshold) == pytest.approx((within < threshold).mean(), abs=4e-3)


@pytest.mark.slow
def test_pairs_taken_as_independent_break_far_more_promises() -> None:
    row = measure(pair_case(Circle(), "far", 0.05, 200), 100)
    assert row["naive_broken_share"] > 0.15
    assert row["broken_share"] < row["naive_broken_share"]

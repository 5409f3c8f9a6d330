"""False positives and coverage on simulated runs; benchmarks/significance.py is the larger version."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.eval import RankingResult, compare_runs

REPETITIONS, PERMUTATIONS = 2000, 400
# What 2,000 repetitions add to the promised 1 % and 2 %: 2.6 standard errors (1 %) of a share of 5 %.
LUCK = 2.6 * np.sqrt(0.05 * 0.95 / REPETITIONS)


def draw(rng: np.random.Generator, units: int, clustered: bool) -> tuple[dict[str, RankingResult], dict[str, str]]:
    """Two runs that are equally good, and the cluster of each query."""
    sizes = rng.integers(1, 6, units) if clustered else np.ones(units, dtype=int)
    cluster = np.repeat(np.arange(units), sizes)
    ids = [f"q{i}" for i in range(len(cluster))]
    ease = 1.6 * rng.normal(size=len(cluster))
    results = {}
    for name in ("one", "other"):
        luck = rng.normal(size=len(cluster)) + (rng.normal(size=units)[cluster] if clustered else 0)
        ranks = 1 + np.floor(np.exp(1 + ease + luck))
        values = {"RR": np.where(ranks <= 100, 1 / ranks, 0.0), "R@1": (ranks == 1).astype(float)}
        results[name] = RankingResult(ids, values, {}, [], [], 0.0, len(ids))
    return results, dict(zip(ids, map(str, cluster), strict=True))


def rates(
    units: int, clustered: bool, told: bool = True, repetitions: int = REPETITIONS
) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], int] = {}
    for repetition in range(repetitions):
        results, clusters = draw(np.random.default_rng([units, clustered, repetition]), units, clustered)
        comparison = compare_runs(
            results,
            permutations=PERMUTATIONS,
            correction=None,
            clusters=clusters if clustered and told else None,
            seed=repetition,
        )
        for row in comparison.rows:
            outcomes = {
                "randomisation": row.p_randomisation <= 0.05,
                "mid-p": row.p_mid <= 0.05,
                "t": row.p_t <= 0.05,
                "interval": not row.low <= 0 <= row.high,
            }
            for name, wrong in outcomes.items():
                found[row.metric, name] = found.get((row.metric, name), 0) + wrong
    return {key: count / repetitions for key, count in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("units", "clustered"), [(200, False), (80, True)])
def test_equal_runs_are_told_apart_in_five_percent(units: int, clustered: bool) -> None:
    for (metric, name), share in rates(units, clustered).items():
        allowed = (0.02 if name == "interval" else 0.01) + LUCK
        if metric == "R@1" and name == "randomisation":
            # The steps of R@1 leave the exact test no p-value just below 5 %: it may only be too careful.
            assert 0.02 < share <= 0.05 + LUCK
        else:
            assert share == pytest.approx(0.05, abs=allowed), (metric, name)


@pytest.mark.slow
def test_clusters_taken_as_independent_mislead() -> None:
    found = rates(80, clustered=True, told=False, repetitions=600)
    assert found["RR", "randomisation"] > 0.08
    assert found["RR", "t"] > 0.08
    assert found["RR", "interval"] > 0.08

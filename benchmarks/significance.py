"""How often compare_runs is wrong: false positives of its tests, and coverage of its intervals, by simulation.

Run: ``OMP_NUM_THREADS=1 python benchmarks/significance.py``. Writes ``benchmarks/results/significance.json`` and
``significance.md``. Each repetition draws the ranks of one relevant document in three runs: a baseline, a run
exactly as good, and a better one. A query is easy or hard for all runs alike, so that values are paired, and RR
and R@1 have the skew and the many ties of real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nearfar.eval import RankingResult, compare_runs

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/significance.py"
METRICS = ("RR", "R@1", "nDCG@10")
DEPTH = 100  # a document beyond this rank was not retrieved
HARDNESS, EASE, NOISE, CLUSTER_NOISE = 1.2, 1.6, 1.2, 0.9


@dataclass(frozen=True)
class Scenario:
    """A test collection to draw from.

    Args:
        name: for the table.
        units: clusters, or queries where each is a cluster of its own.
        clustered: clusters of 1 to 8 queries (mean 3) share their ease, and how well each run does on them.
        told: whether compare_runs is told of the clusters.
        skewed: the equal run takes the baseline's ranks, gains a little on every query (half the rank) and
            loses a few queries altogether, so many that its mean RR is the same. The differences are then
            far from symmetric, which the randomisation test takes equal runs to be.
    """

    name: str
    units: int
    clustered: bool = False
    told: bool = True
    skewed: bool = False


SCENARIOS = [
    Scenario("50 queries", 50),
    Scenario("200 queries", 200),
    Scenario("1,000 queries", 1000),
    Scenario("200 queries, skewed differences", 200, skewed=True),
    Scenario("30 clusters", 30, clustered=True),
    Scenario("100 clusters", 100, clustered=True),
    Scenario("300 clusters", 300, clustered=True),
    Scenario("100 clusters taken as independent", 100, clustered=True, told=False),
]


def draw_ranks(
    rng: np.random.Generator, scenario: Scenario, shifts: dict[str, float], units: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ranks (Q,) of the relevant document in each run, and the cluster (Q,) of each query."""
    sizes = rng.binomial(7, 2 / 7, units) + 1 if scenario.clustered else np.ones(units, dtype=int)
    cluster = np.repeat(np.arange(units), sizes)  # (Q,)
    share = math.sqrt(0.5) if scenario.clustered else 0.0  # half of the variance of the ease is the cluster's
    ease = share * rng.normal(size=units)[cluster] + math.sqrt(1 - share**2) * rng.normal(size=len(cluster))
    ranks = {}
    for name, shift in shifts.items():
        luck = NOISE * rng.normal(size=len(cluster))
        if scenario.clustered:
            luck += CLUSTER_NOISE * rng.normal(size=units)[cluster]
        ranks[name] = 1 + np.floor(np.exp(HARDNESS + EASE * ease + luck - shift)).clip(max=1e9)
    if scenario.skewed:
        ranks["equal"] = np.ceil(ranks["base"] / 2)
        ranks["equal"][rng.random(len(cluster)) < lost_share()] = 1e9
    return ranks, cluster


def score(ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "RR": np.where(ranks <= DEPTH, 1 / ranks, 0.0),
        "R@1": (ranks == 1).astype(float),
        "nDCG@10": np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0),
    }


@lru_cache
def lost_share() -> float:
    """The share of queries to lose that outweighs half the rank on the others, in mean RR."""
    ranks, _ = draw_ranks(np.random.default_rng(1), Scenario("", 0), {"base": 0.0}, 8_000_000)
    before, after = score(ranks["base"])["RR"].mean(), score(np.ceil(ranks["base"] / 2))["RR"].mean()
    return float(1 - before / after)


def truth(scenario: Scenario, shifts: dict[str, float]) -> dict[tuple[str, str], float]:
    """True differences to the baseline, from four million queries; errors are below 0.0005."""
    ranks, _ = draw_ranks(np.random.default_rng(2), scenario, shifts, 4_000_000 // (3 if scenario.clustered else 1))
    scores = {name: score(r) for name, r in ranks.items()}
    found = {
        (name, metric): float(scores[name][metric].mean() - scores["base"][metric].mean())
        for name in ("equal", "better")
        for metric in METRICS
    }
    # By construction, whatever the sample says.
    found.update({("equal", metric): 0.0 for metric in METRICS})
    return found


def simulate(scenario: Scenario, repetitions: int, permutations: int) -> list[dict[str, object]]:
    """Shares of false positives and of intervals that hold the truth, for each metric."""
    shifts = {"base": 0.0, "equal": 0.0, "better": 0.35}
    true = truth(scenario, shifts)
    metrics = ("RR",) if scenario.skewed else METRICS  # only the mean RR is made equal there
    counts = {
        metric: dict.fromkeys(("flips", "mid", "t", "cover_equal", "cover_better", "power"), 0) for metric in metrics
    }
    differing: dict[str, list[int]] = {metric: [] for metric in metrics}
    for repetition in range(repetitions):
        rng = np.random.default_rng([scenario.units, scenario.clustered, scenario.skewed, repetition])
        ranks, cluster = draw_ranks(rng, scenario, shifts, scenario.units)
        ids = [f"q{i}" for i in range(len(cluster))]
        results = {
            name: RankingResult(ids, {m: v for m, v in score(r).items() if m in metrics}, {}, [], [], 0.0, len(ids))
            for name, r in ranks.items()
        }
        clusters = None
        if scenario.clustered and scenario.told:
            clusters = dict(zip(ids, map(str, cluster.tolist()), strict=True))
        found = compare_runs(
            results, baseline="base", permutations=permutations, correction=None, clusters=clusters, seed=repetition
        )
        for row in found.rows:
            count, target = counts[row.metric], true[row.run, row.metric]
            assert row.low is not None
            assert row.high is not None
            assert row.p_t is not None
            count[f"cover_{row.run}"] += row.low <= target <= row.high
            if row.run == "equal":
                count["flips"] += row.p_randomisation <= 0.05
                count["mid"] += row.p_mid <= 0.05
                count["t"] += row.p_t <= 0.05
                differing[row.metric].append(len(row.wins) + len(row.losses))
            else:
                count["power"] += row.p_randomisation <= 0.05
    return [
        {
            "scenario": scenario.name,
            "metric": metric,
            "repetitions": repetitions,
            "queries_that_differ": float(np.mean(differing[metric])),
            "false_positives_randomisation": count["flips"] / repetitions,
            "false_positives_mid_p": count["mid"] / repetitions,
            "false_positives_t": count["t"] / repetitions,
            "coverage_equal": count["cover_equal"] / repetitions,
            "coverage_better": count["cover_better"] / repetitions,
            "true_difference_better": true["better", metric],
            "power_randomisation": count["power"] / repetitions,
        }
        for metric, count in counts.items()
    ]


def as_markdown(rows: list[dict[str, object]], repetitions: int, permutations: int) -> str:
    error = 1.96 * math.sqrt(0.05 * 0.95 / repetitions)
    lines = [
        f"`{COMMAND}`: {repetitions:,} repetitions for each line, {permutations:,} sign patterns and resamples each; "
        f"the simulation's own error is ±{error:.1%} (95 %). Tests at the 5 % level on runs that are equally good; "
        "intervals of 95 %, on the equal and on a better run, against the true difference.",
        "",
        "| collection | metric | queries that differ | false positives: randomisation | mid-p | t | coverage: equal "
        "| better | true difference | power |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['scenario']} | {row['metric']} | {row['queries_that_differ']:.0f} "
            f"| {row['false_positives_randomisation']:.1%} "
            f"| {row['false_positives_mid_p']:.1%} | {row['false_positives_t']:.1%} "
            f"| {row['coverage_equal']:.1%} | {row['coverage_better']:.1%} "
            f"| {row['true_difference_better']:+.3f} | {row['power_randomisation']:.1%} |"
        )
    lines += [
        "",
        "The randomisation test is exact, so it errs on the safe side where few queries differ and all by the same "
        "step, as with R@1: no p-value lies between the step below 5 % and 5 %. Mid-p takes half of the chance of "
        "exactly what was observed and so comes to 5 % there, without the promise never to exceed it. Clusters taken "
        "as independent queries show what goes wrong without `clusters=`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5000)
    parser.add_argument("--permutations", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for scenario in SCENARIOS:
        start = time.perf_counter()
        rows += simulate(scenario, options.repetitions, options.permutations)
        print(f"{scenario.name}: {time.perf_counter() - start:.0f} s", flush=True)
    text = as_markdown(rows, options.repetitions, options.permutations)
    print(text)
    content = {
        "command": COMMAND,
        "repetitions": options.repetitions,
        "permutations": options.permutations,
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "rows": rows,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "significance.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "significance.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

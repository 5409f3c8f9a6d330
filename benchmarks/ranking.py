"""Time of evaluate_run and evaluate_arrays against pytrec_eval: 10,000 queries, top 100, graded judgements.

Run: ``OMP_NUM_THREADS=1 python benchmarks/ranking.py``. Writes ``benchmarks/results/ranking.json`` and ``ranking.md``.
All three run in one process, in turn, and must agree before they are timed.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytrec_eval

from nearfar.eval import evaluate_arrays, evaluate_run

NAME = "{:07}".format  # padded, so that strings order as numbers do where scores tie
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/ranking.py"
QUERIES, DEPTH, DOCUMENTS, REPEATS = 10_000, 100, 1_000_000, 9
NAMES = {
    "R@1": "recall_1",
    "R@10": "recall_10",
    "R@100": "recall_100",
    "RR": "recip_rank",
    "nDCG@10": "ndcg_cut_10",
    "AP": "map",
}


def make_case() -> dict[str, np.ndarray]:
    """A run whose judged documents are found about two thirds of the time."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(DOCUMENTS, DEPTH, replace=False) for _ in range(QUERIES)])
    scores = np.sort(rng.random((QUERIES, DEPTH)))[:, ::-1].astype(np.float32)
    documents, indptr = [], [0]
    for row in ids:
        wanted = rng.integers(1, 6)
        found = rng.choice(row, rng.binomial(wanted, 0.67), replace=False)
        missed = rng.integers(0, DOCUMENTS, wanted - len(found))
        documents.append(np.unique(np.concatenate([found, missed])))
        indptr.append(indptr[-1] + len(documents[-1]))
    flat = np.concatenate(documents)
    grades = rng.integers(1, 4, len(flat))
    return {"ids": ids, "scores": scores, "indptr": np.array(indptr), "documents": flat, "grades": grades}


def as_dicts(case: dict[str, np.ndarray]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    run, qrels = {}, {}
    for query in range(QUERIES):
        row = slice(case["indptr"][query], case["indptr"][query + 1])
        names = map(NAME, case["ids"][query].tolist())
        run[str(query)] = dict(zip(names, case["scores"][query].tolist(), strict=True))
        judged = map(NAME, case["documents"][row].tolist())
        qrels[str(query)] = dict(zip(judged, case["grades"][row].tolist(), strict=True))
    return run, qrels


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each call, taken in turn so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    case = make_case()
    run, qrels = as_dicts(case)
    arrays = (case["ids"], case["scores"], case["indptr"], case["documents"], case["grades"])

    def trec() -> dict[str, dict[str, float]]:
        return pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values())).evaluate(run)

    def ours() -> object:
        return evaluate_run(run, qrels, list(NAMES))

    def ours_arrays() -> object:
        return evaluate_arrays(*arrays, list(NAMES))

    expected, result = trec(), evaluate_run(run, qrels, list(NAMES))
    from_arrays = evaluate_arrays(*arrays, list(NAMES))
    worst = 0.0
    for name, trec_name in NAMES.items():
        wanted = np.array([expected[query][trec_name] for query in result.query_ids])
        for values in (result.per_query[name], from_arrays.per_query[name]):
            worst = max(worst, float(abs(values - wanted).max()))
    if worst > 1e-9:
        raise SystemExit(f"the values differ by {worst}")

    seconds = interleaved({"pytrec_eval": trec, "evaluate_run": ours, "evaluate_arrays": ours_arrays})
    rows = {}
    for name, times in seconds.items():
        ratios = [base / own for base, own in zip(seconds["pytrec_eval"], times, strict=True)]
        rows[name] = {
            "seconds_median": statistics.median(times),
            "seconds_min": min(times),
            "seconds_max": max(times),
            "times_faster_median": statistics.median(ratios),
            "times_faster_min": min(ratios),
            "times_faster_max": max(ratios),
        }
    report = {
        "command": COMMAND,
        "case": {"queries": QUERIES, "depth": DEPTH, "judgements": len(case["grades"]), "repeats": REPEATS},
        "metrics": list(NAMES),
        "largest_difference_per_query": worst,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pytrec-eval-terrier")},
        "results": rows,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "ranking.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "ranking.md").write_text(markdown(report))
    print(markdown(report))


def markdown(report: dict) -> str:
    case = report["case"]
    lines = [
        f"`{report['command']}`: {case['queries']:,} queries, top {case['depth']}, {case['judgements']:,} graded "
        f"judgements, {', '.join(report['metrics'])}. {case['repeats']} repeats in turn, one process. "
        f"Largest difference for any query: {report['largest_difference_per_query']:.1e}.",
        "",
        "| evaluator | seconds, median (min to max) | times faster than pytrec_eval, median (min to max) |",
        "|---|---|---|",
    ]
    for name, row in report["results"].items():
        lines.append(
            f"| {name} | {row['seconds_median']:.3f} ({row['seconds_min']:.3f} to {row['seconds_max']:.3f}) "
            f"| {row['times_faster_median']:.1f} ({row['times_faster_min']:.1f} to {row['times_faster_max']:.1f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

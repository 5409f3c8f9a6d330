"""Time of evaluate_run and evaluate_arrays against pytrec_eval and ranx: 10,000 queries, top 100, graded judgements.

Run: ``OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/ranking.py``. Writes ``benchmarks/results/ranking.json``
and ``ranking.md``. All run in one process, in turn, and must agree before they are timed. What a peer can prepare is
made beforehand and not timed: pytrec_eval's evaluator, ranx's Qrels and Run, and ranx's compiled functions, which the
check for agreement has warmed. ranx is a peer where it is installed (``pip install ranx``; nearfar does not need it);
``--peers`` names those to measure. Memory, and how the array path grows to 1,000,000 queries, are measured in
processes of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nearfar.eval import evaluate_arrays, evaluate_run

NAME = "{:07}".format  # padded, so that strings order as numbers do where scores tie
COMMAND = "OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/ranking.py"
QUERIES, DEPTH, DOCUMENTS, REPEATS = 10_000, 100, 1_000_000, 9
NAMES = {
    "R@1": "recall_1",
    "R@10": "recall_10",
    "R@100": "recall_100",
    "RR": "recip_rank",
    "nDCG@10": "ndcg_cut_10",
    "AP": "map",
}
RANX_NAMES = {
    "R@1": "recall@1",
    "R@10": "recall@10",
    "R@100": "recall@100",
    "RR": "mrr",
    "nDCG@10": "ndcg@10",
    "AP": "map",
}
DISTRIBUTIONS = {"pytrec_eval": "pytrec-eval-terrier", "ranx": "ranx"}
PEERS = [peer for peer in ("pytrec_eval", "ranx") if importlib.util.find_spec(peer)]


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


def make_large(queries: int) -> tuple[np.ndarray, ...]:
    """Arrays of any size: distinct documents in each row, three judged ones, two of them found."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, DOCUMENTS, queries, dtype=np.int32)[:, None]
    ids = (first + 7919 * np.arange(DEPTH, dtype=np.int32)) % np.int32(DOCUMENTS)
    scores = np.tile(np.linspace(1, 0, DEPTH, dtype=np.float32), (queries, 1))
    places = rng.integers(0, DEPTH // 2, (queries, 1)) + np.array([0, DEPTH // 2])
    missed = (first + 7919 * DEPTH) % np.int32(DOCUMENTS)
    documents = np.concatenate([np.take_along_axis(ids, places, axis=1), missed], axis=1).ravel()
    return ids, scores, np.arange(0, 3 * queries + 1, 3), documents, rng.integers(1, 4, 3 * queries)


def resident() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(queries: int, dicts: bool) -> dict[str, float]:
    """Time and memory of nearfar in a process that has done nothing else."""
    evaluate_arrays(*make_large(10), list(NAMES))
    evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 1}}, list(NAMES))
    imported = resident()
    arguments = as_dicts(make_case()) if dicts else make_large(queries)
    before = resident()
    start = time.perf_counter()
    (evaluate_run if dicts else evaluate_arrays)(*arguments, list(NAMES))
    return {
        "evaluator": "evaluate_run" if dicts else "evaluate_arrays",
        "queries": queries,
        "seconds": time.perf_counter() - start,
        "input_mb": before - imported,
        "over_import_mb": resident() - imported,
        "over_input_mb": resident() - before,
    }


def in_own_process(queries: int, dicts: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", str(queries), *(["--dicts"] if dicts else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def pytrec_peer(run: dict, qrels: dict) -> tuple[Callable[[], object], Callable[[], dict[str, np.ndarray]]]:
    """What is timed, and its values by metric in the order of the qrels."""
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values()))

    def values() -> dict[str, np.ndarray]:
        found = evaluator.evaluate(run)
        return {name: np.array([found[query][own] for query in qrels]) for name, own in NAMES.items()}

    return lambda: evaluator.evaluate(run), values


def ranx_peer(run: dict, qrels: dict) -> tuple[Callable[[], object], Callable[[], dict[str, np.ndarray]]]:
    """The same for ranx, whose values come by its own order of the queries."""
    import ranx

    judged, ranked = ranx.Qrels(qrels), ranx.Run(run)
    names = list(RANX_NAMES.values())

    def values() -> dict[str, np.ndarray]:
        found = ranx.evaluate(judged, ranked, names, return_mean=False)
        place = {query: at for at, query in enumerate(judged.qrels)}
        order = [place[query] for query in qrels]
        return {name: np.asarray(found[own])[order] for name, own in RANX_NAMES.items()}

    return lambda: ranx.evaluate(judged, ranked, names), values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dicts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peers", nargs="+", choices=("pytrec_eval", "ranx"), default=PEERS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone, options.dicts)))
        return
    # First, since a child inherits the peak memory of its parent.
    growth = [in_own_process(QUERIES, dicts=True)]
    growth += [in_own_process(queries) for queries in (QUERIES, 10 * QUERIES, 100 * QUERIES)]
    case = make_case()
    run, qrels = as_dicts(case)
    arrays = (case["ids"], case["scores"], case["indptr"], case["documents"], case["grades"])
    calls: dict[str, Callable[[], object]] = {}
    own = [evaluate_run(run, qrels, list(NAMES)).per_query, evaluate_arrays(*arrays, list(NAMES)).per_query]
    worst = {}
    for peer in options.peers:
        calls[peer], values = {"pytrec_eval": pytrec_peer, "ranx": ranx_peer}[peer](run, qrels)
        wanted = values()
        worst[peer] = max(float(abs(found[name] - wanted[name]).max()) for found in own for name in NAMES)
        if worst[peer] > 1e-9:
            raise SystemExit(f"the values differ from those of {peer} by {worst[peer]}")
    if "ranx" in options.peers:
        calls["ranx, its objects made from the dicts"] = lambda: ranx_peer(run, qrels)[0]()
    calls["evaluate_run"] = lambda: evaluate_run(run, qrels, list(NAMES))
    calls["evaluate_arrays"] = lambda: evaluate_arrays(*arrays, list(NAMES))
    seconds = interleaved(calls)
    rows = {}
    for name, times in seconds.items():
        rows[name] = {"seconds": spread(times)}
        for peer in options.peers:
            ratios = [theirs / ours for theirs, ours in zip(seconds[peer], times, strict=True)]
            rows[name][f"times_faster_than_{peer}"] = spread(ratios)
    report = {
        "command": COMMAND,
        "case": {"queries": QUERIES, "depth": DEPTH, "judgements": len(case["grades"]), "repeats": REPEATS},
        "metrics": list(NAMES),
        "largest_difference_per_query": worst,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", *(DISTRIBUTIONS[peer] for peer in options.peers))},
        "results": rows,
        "growth": growth,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "ranking.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "ranking.md").write_text(markdown(report))
    print(markdown(report))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cell(values: dict[str, float], digits: int) -> str:
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def markdown(report: dict) -> str:
    case, peers = report["case"], list(report["largest_difference_per_query"])
    apart = ", ".join(f"{value:.1e} from {peer}" for peer, value in report["largest_difference_per_query"].items())
    lines = [
        f"`{report['command']}`: {case['queries']:,} queries, top {case['depth']}, {case['judgements']:,} graded "
        f"judgements, {', '.join(report['metrics'])}. {case['repeats']} repeats in turn, one process, one thread; "
        f"median (least to most). Largest difference for any query: {apart}. "
        f"{', '.join(f'{name} {number}' for name, number in report['versions'].items())}.",
        "",
        "| evaluator | seconds | " + " | ".join(f"times faster than {peer}" for peer in peers) + " |",
        "|---|---|" + "---|" * len(peers),
    ]
    for name, row in report["results"].items():
        ratios = " | ".join(cell(row[f"times_faster_than_{peer}"], 1) for peer in peers)
        lines.append(f"| {name} | {cell(row['seconds'], 3)} | {ratios} |")
    lines += [
        "",
        "Each in a process of its own (memory: peak resident over what was resident before):",
        "",
        "| evaluator | queries | seconds | input made, MB over the import | evaluated, MB over the import "
        "| evaluation alone, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["growth"]:
        lines.append(
            f"| {row['evaluator']} | {row['queries']:,} | {row['seconds']:.3f} | {row['input_mb']:.0f} "
            f"| {row['over_import_mb']:.0f} | {row['over_input_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

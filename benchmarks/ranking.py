"""Time of evaluate_run and evaluate_arrays against pytrec_eval: 10,000 queries, top 100, graded judgements.

Run: ``OMP_NUM_THREADS=1 python benchmarks/ranking.py``. Writes ``benchmarks/results/ranking.json`` and ``ranking.md``.
All run in one process, in turn, and must agree before they are timed; pytrec_eval's evaluator is made beforehand, so
that only its evaluate() is timed. Memory, and how the array path grows to 1,000,000 queries, are measured in processes
of their own. ``--beir FOLDER`` instead compares nearfar, pytrec_eval and ir_measures on a BEIR folder (with
``qrels/test.tsv``), searched by the demo model.
"""

from __future__ import annotations

import argparse
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


def alone(queries: int) -> dict[str, float]:
    """Time and memory of evaluate_arrays in a process that has done nothing else."""
    evaluate_arrays(*make_large(10), list(NAMES))
    imported = resident()
    arrays = make_large(queries)
    before = resident()
    start = time.perf_counter()
    evaluate_arrays(*arrays, list(NAMES))
    seconds = time.perf_counter() - start
    return {
        "queries": queries,
        "input_mb": sum(array.nbytes for array in arrays) / 2**20,
        "seconds": seconds,
        "over_import_mb": resident() - imported,
        "over_input_mb": resident() - before,
    }


def in_own_process(queries: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", str(queries)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare_on(folder: Path) -> None:
    """Figures of three libraries on one data set, searched by the demo model."""
    import ir_measures

    from nearfar.data import demo_model, load_beir

    dataset = load_beir(folder)
    model = demo_model()
    documents, queries = list(dataset.corpus), list(dataset.queries)
    corpus = model.encode([dataset.corpus[name].content for name in documents], normalize_embeddings=True)
    similar = model.encode([dataset.queries[name] for name in queries], normalize_embeddings=True) @ corpus.T
    top = np.argsort(-similar, axis=1, kind="stable")[:, :100]
    run = {
        query: {documents[column]: float(similar[row, column]) for column in top[row]}
        for row, query in enumerate(queries)
    }
    ours = evaluate_run(run, dataset.qrels, list(NAMES)).mean
    scored = {query: judged for query, judged in dataset.qrels.items() if max(judged.values()) > 0}
    trec = pytrec_eval.RelevanceEvaluator(scored, set(NAMES.values())).evaluate(run)
    measures = {name: ir_measures.parse_measure(name) for name in NAMES}
    theirs = ir_measures.calc_aggregate(list(measures.values()), scored, run)
    print(f"{dataset.name}: {len(documents)} documents, {len(scored)} queries with a relevant document")
    for name, trec_name in NAMES.items():
        mean = sum(values[trec_name] for values in trec.values()) / len(scored)
        print(f"{name:8} nearfar {ours[name]:.12f}  pytrec_eval {mean:.12f}  ir_measures {theirs[measures[name]]:.12f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--beir", type=Path, help="a BEIR folder to compare three libraries on")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone)))
        return
    if options.beir:
        compare_on(options.beir)
        return
    # First, since a child inherits the peak memory of its parent.
    growth = [in_own_process(queries) for queries in (10_000, 100_000, 1_000_000)]
    case = make_case()
    run, qrels = as_dicts(case)
    arrays = (case["ids"], case["scores"], case["indptr"], case["documents"], case["grades"])

    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values()))

    def trec() -> dict[str, dict[str, float]]:
        return evaluator.evaluate(run)

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
        "growth": growth,
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
    lines += [
        "",
        "evaluate_arrays, each in a process of its own (memory: peak over what was resident before):",
        "",
        "| queries | seconds | input, MB | peak over the import, input included, MB | peak over the input, MB |",
        "|---|---|---|---|---|",
    ]
    for row in report["growth"]:
        lines.append(
            f"| {row['queries']:,} | {row['seconds']:.3f} | {row['input_mb']:.0f} | {row['over_import_mb']:.0f} "
            f"| {row['over_input_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Cranfield (1,400 documents, 225 queries, grades 1 to 4): the same figures from nearfar, pytrec_eval and ir-measures.

Run: ``OMP_NUM_THREADS=2 python benchmarks/cranfield.py --data FOLDER``, where FOLDER is the collection as BEIR lays it
out (``corpus.jsonl``, ``queries.jsonl``, ``qrels/test.tsv``). Two real models, the demo's table of words and MiniLM,
index the corpus and search all queries; each run is scored by the three libraries, query by query, at two relevance
levels. Writes ``benchmarks/results/cranfield.json`` and ``cranfield.md``; ends with an error when any value differs by
more than 1e-9. Documents without a word (471 and 995) cannot be encoded and are left out of the index.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytrec_eval

from nearfar.data import RetrievalDataset, demo_model, load_beir, minilm_model
from nearfar.eval import evaluate_run
from nearfar.retrieval import Retriever

COMMAND = "OMP_NUM_THREADS=2 python benchmarks/cranfield.py --data FOLDER"
DEPTH, LEVELS, SAME = 100, (1, 3), 1e-9
# nearfar and ir-measures share the names; pytrec_eval has no cut-off for the reciprocal rank.
NAMES = {
    "R@10": "recall_10",
    "R@100": "recall_100",
    "Success@10": "success_10",
    "P@10": "P_10",
    "RR": "recip_rank",
    "RR@10": None,
    "nDCG@10": "ndcg_cut_10",
    "nDCG": "ndcg",
    "AP": "map",
    "AP@100": "map_cut_100",
    "Rprec": "Rprec",
}


def search(model: Any, dataset: RetrievalDataset) -> tuple[dict[str, dict[str, float]], float]:
    """The run of a model, and the seconds that encoding and searching took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Retriever.create(Path(folder) / "index", model) as retriever:
        retriever.index_documents(document for document in dataset.corpus.values() if document.content.strip())
        return retriever.run(dataset.queries, DEPTH), time.perf_counter() - start


def by_trec(run: dict, qrels: dict, level: int) -> dict[str, dict[str, float]]:
    """Metric -> query -> value of pytrec_eval; a query without a relevant document is left out, as by nearfar."""
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {name for name in NAMES.values() if name}, relevance_level=level)
    found = evaluator.evaluate(run)
    return {own: {q: values[name] for q, values in found.items()} for own, name in NAMES.items() if name}


def by_ir_measures(run: dict, qrels: dict, level: int) -> dict[str, dict[str, float]]:
    """Metric -> query -> value of ir-measures; nDCG takes the grades and no level."""
    measures = {
        ir_measures.parse_measure(name if name.startswith("nDCG") else name.replace("@", f"(rel={level})@"))
        if "@" in name or name.startswith("nDCG")
        else ir_measures.parse_measure(f"{name}(rel={level})"): name
        for name in NAMES
    }
    found: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for value in ir_measures.iter_calc(list(measures), qrels, run):
        found[measures[value.measure]][value.query_id] = value.value
    return found


def measure(run: dict, qrels: dict, level: int) -> list[dict[str, Any]]:
    """A row a metric: three means over the same queries, and the largest difference for any query."""
    own = evaluate_run(run, qrels, list(NAMES), relevance_level=level)
    others = {"pytrec_eval": by_trec(run, qrels, level), "ir_measures": by_ir_measures(run, qrels, level)}
    rows = []
    for name in NAMES:
        row: dict[str, Any] = {"metric": name, "level": level, "queries": len(own.query_ids), "nearfar": own.mean[name]}
        for library, values in others.items():
            if name in values:
                theirs = np.array([values[name][query] for query in own.query_ids])
                row[library] = float(theirs.mean())
                row[f"difference_{library}"] = float(abs(theirs - own.per_query[name]).max())
        rows.append(row)
    return rows


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"`{report['command']}`: {report['documents']:,} documents, {report['queries']} queries, top {DEPTH} of each. "
        f"Values of nearfar; the largest difference of any query, metric, level and model is "
        f"{report['largest_difference']:.1e}.",
        "",
    ]
    for level in LEVELS:
        models = list(report["models"])
        lines += [
            f"Relevant from grade {level}:",
            "",
            "| metric | " + " | ".join(models) + " | differs from pytrec_eval by at most | from ir-measures |",
            "|---|" + "---:|" * (len(models) + 2),
        ]
        for place, name in enumerate(NAMES):
            rows = [[r for r in model["rows"] if r["level"] == level][place] for model in report["models"].values()]
            worst = [
                f"{max(r[f'difference_{library}'] for r in rows):.1e}"
                if f"difference_{library}" in rows[0]
                else "has none"
                for library in ("pytrec_eval", "ir_measures")
            ]
            lines.append(
                f"| {name} | " + " | ".join(f"{r['nearfar']:.6f}" for r in rows) + f" | {worst[0]} | {worst[1]} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the collection's BEIR folder")
    options = parser.parse_args()
    dataset = load_beir(options.data)
    models: dict[str, Any] = {}
    for name, load in (("wordllama", demo_model), ("MiniLM", minilm_model)):
        run, seconds = search(load(), dataset)
        rows = [row for level in LEVELS for row in measure(run, dataset.qrels, level)]
        models[name] = {"seconds": seconds, "rows": rows}
        print(f"{name}: indexed and searched in {seconds:.0f} s", flush=True)
    worst = max(
        row[key] for model in models.values() for row in model["rows"] for key in row if key.startswith("difference")
    )
    report = {
        "command": COMMAND,
        "documents": len(dataset.corpus),
        "queries": len(dataset.queries),
        "models": models,
        "largest_difference": worst,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pytrec-eval-terrier", "ir-measures")},
    }
    print(markdown(report))
    if worst > SAME:
        raise SystemExit(f"the values differ by {worst}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "cranfield.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "cranfield.md").write_text(markdown(report))


if __name__ == "__main__":
    main()

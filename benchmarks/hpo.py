"""Which loss finds clinical terms best? Every loss of nearfar beside sentence-transformers' own, on HPO.

All runs share the model (the wordllama table), the split by term, epochs, batch size and seeds. Each loss uses the
learning rate that is best for it on the dev terms, chosen from the same grid at the first seed. Test terms occur in no
training pair and took no part in any choice.

The comparison with the reference is paired: the difference of each query, averaged over seeds and then over the
queries of a term, since synonyms of one term are not independent. It gives a 95 % interval (t over terms) and a
randomisation test (10,000 sign flips).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nearfar.data import demo_dataset, demo_model
from nearfar.eval import evaluate_run, opis
from nearfar.eval.report import library_versions
from nearfar.retrieval import fine_tune
from nearfar.retrieval.training.evaluator import RetrievalEvaluator

REFERENCE = "st:MultipleNegativesRankingLoss"
# Name, options, batch sampler. The reference has the sampler its documentation recommends.
LOSSES = {
    REFERENCE: {"loss": REFERENCE, "batch_sampler": "no_duplicates"},
    "circle": {"loss": "circle"},
    "circle, gamma=32": {"loss": "circle", "loss_options": {"gamma": 32}},
    "multi-similarity": {"loss": "multi-similarity"},
    "multi-similarity, mining_margin=0.1": {"loss": "multi-similarity", "loss_options": {"mining_margin": 0.1}},
    "decoupled-softmax": {"loss": "decoupled-softmax"},
    "decoupled-softmax, temperature=0.07": {"loss": "decoupled-softmax", "loss_options": {"temperature": 0.07}},
    "threshold-consistent-margin": {"loss": "threshold-consistent-margin"},
    "nbc-softmax": {"loss": "nbc-softmax"},
    "icnn": {"loss": "icnn"},
}
METRICS = ("R@1", "R@10", "RR@10")
RESULTS = Path(__file__).parent / "results"


def train(recipe, data, learning_rate, seed, arguments):
    """One trained model."""
    with tempfile.TemporaryDirectory() as folder:
        return fine_tune(
            demo_model(),
            data.train,
            output_dir=folder,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=learning_rate,
            seed=seed,
            show_progress=False,
            trainer_args={"save_strategy": "no"},
            **recipe,
        ).model


def score(model, dataset):
    return evaluate_run(RetrievalEvaluator(dataset).run(model), dataset.qrels, METRICS)


def threshold_spread(model, data):
    vectors = model.encode_document(data.test_texts.texts, normalize_embeddings=True, show_progress_bar=False)
    found = opis(vectors, np.asarray(data.test_texts.labels), min_class_size=5)
    return {"OPIS": found.opis, "OPIS corrected": found.corrected}


def measure(name, data, arguments):
    """Choose the learning rate on the dev terms, then test over all seeds."""
    recipe, started = LOSSES[name], time.perf_counter()
    dev = {}
    for rate in arguments.learning_rates:
        dev[rate] = score(train(recipe, data, rate, arguments.seeds[0], arguments), data.dev).mean["R@1"]
    rate = max(dev, key=dev.get)
    runs, per_query = [], []
    for seed in arguments.seeds:
        model = train(recipe, data, rate, seed, arguments)
        result = score(model, data.test)
        runs.append({**result.mean, **threshold_spread(model, data)})
        per_query.append(result.per_query["R@1"])
    print(f"{name}: {runs} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    dev_scores = {str(key): value for key, value in dev.items()}
    return {"learning_rate": rate, "dev R@1": dev_scores, "runs": runs}, np.mean(per_query, axis=0)


def compare(difference, terms):
    """Mean difference with its interval and p-value, a term counting once."""
    _, index = np.unique(terms, return_inverse=True)
    by_term = np.bincount(index, difference) / np.bincount(index)
    # Terms weigh by their queries in R@1; here each counts once, so the two means differ slightly.
    mean, error = by_term.mean(), by_term.std(ddof=1) / math.sqrt(len(by_term))
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (10_000, len(by_term)))
    extreme = np.abs(signs @ by_term / len(by_term)) >= abs(mean) - 1e-12
    half = 1.96 * error
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": (extreme.sum() + 1) / (len(signs) + 1)}


def table(results):
    columns = [*METRICS, "OPIS", "OPIS corrected"]
    lines = [
        "| loss | learning rate | " + " | ".join(columns) + " | R@1 against the reference, per term (95 %) | p |",
        "|---|---|" + "---|" * (len(columns) + 2),
    ]
    for name, result in results.items():
        cells = []
        for column in columns:
            values = [run[column] for run in result["runs"]]
            cells.append(f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}")
        against = result.get("against")
        shown = f"{against['difference']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})" if against else "–"
        p = f"{against['p']:.4f}" if against else "–"
        lines.append(f"| {name} | {result['learning_rate']} | {' | '.join(cells)} | {shown} | {p} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[2e-2, 5e-2, 1e-1])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    data = demo_dataset()
    before = {**score(demo_model(), data.test).mean, **threshold_spread(demo_model(), data)}
    names = [REFERENCE, *(name for name in arguments.losses if name != REFERENCE)]
    results, answers = {}, {}
    for name in names:
        results[name], answers[name] = measure(name, data, arguments)
    terms = [next(iter(data.test.qrels[query])) for query in score(demo_model(), data.test).query_ids]
    for name in names[1:]:
        results[name]["against"] = compare(answers[name] - answers[REFERENCE], terms)

    command = "python benchmarks/hpo.py " + " ".join(sys.argv[1:])
    untrained = ", ".join(f"{name} {value:.4f}" for name, value in before.items())
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command.strip(),
        "versions": library_versions(),
        "data": data.source.acknowledgement,
        "untrained": before,
        "results": results,
    }
    (arguments.output / "hpo.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    text = [
        "# Losses on unseen HPO terms",
        f"`{command.strip()}`",
        f"{len(data.train):,} training pairs, {len(data.test.queries):,} queries about {len(set(terms)):,} unseen "
        f"terms, {arguments.epochs:g} epochs, batch {arguments.batch_size}, seeds {arguments.seeds}: mean ± standard "
        "deviation.",
        f"Untrained model: {untrained}.",
        table(results),
        data.source.acknowledgement,
    ]
    (arguments.output / "hpo.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

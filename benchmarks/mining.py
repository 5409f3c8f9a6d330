"""Do batches of confusable classes make better models? Global proxy mining beside random batches, on HPO.

All runs share the model, the split by term, epochs, batch size and seeds; each recipe uses the learning rate that is
best for it on the dev terms, chosen from one grid at the first seed (a grid of one rate is no choice). Test terms occur
in no training pair and took no part in any choice. Differences are paired as in ``hpo.py``: per query, averaged over
seeds, a term counting once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from hpo import METRICS, REFERENCE, compare, score, threshold_spread

from nearfar.data import TrainingPairs, demo_dataset, demo_model, minilm_model
from nearfar.eval.report import library_versions
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval import fine_tune

BASES = {
    "circle": {"loss": "circle", "loss_options": {"gamma": 32}},
    "multi-similarity": {"loss": "multi-similarity"},
    "decoupled-softmax": {"loss": "decoupled-softmax", "loss_options": {"temperature": 0.07}},
    "bixse": {"loss": "bixse", "loss_options": {"temperature": 0.1}},
}
MINERS = {
    "random": None,
    "proxies": {"proxy_dim": None, "first_epoch": "mined"},  # means of the embeddings themselves
    "proxies, head": {"proxy_dim": 128},  # the paper's
}
MODELS = {"wordllama": demo_model, "minilm": minilm_model}
RESULTS = Path(__file__).parent / "results"


def recipes():
    """Recipe by name: the reference, then every base loss with every way of making batches."""
    found = {REFERENCE: ({"loss": REFERENCE, "batch_sampler": "no_duplicates"}, None)}
    for base, options in BASES.items():
        for batches, miner in MINERS.items():
            found[f"{base}, {batches}"] = (options, miner)
    return found


def training_pairs(data, count, seed=0):
    """All pairs, or a random choice."""
    pairs = data.train
    if count is None:
        return pairs
    rows = sorted(np.random.default_rng(seed).choice(len(pairs), count, replace=False).tolist())
    return TrainingPairs(*([column[row] for row in rows] for column in (pairs.queries, pairs.documents, pairs.labels)))


def untrained_model(options):
    model = MODELS[options["model"]]()
    if options["max_tokens"] is not None:
        model.max_seq_length = options["max_tokens"]
    return model


def scored(model, dataset, options):
    """Transformers encode the corpus in bfloat16, at half the time."""
    if options["model"] == "minilm":
        model.to(torch.bfloat16)
    return score(model, dataset)


def one_run(job):
    """One trained model, scored; runs in a process of its own pool."""
    name, rate, seed, split, options = job
    torch.set_num_threads(options["threads"])
    data = demo_dataset()
    recipe, miner = recipes()[name]
    with tempfile.TemporaryDirectory() as folder:
        model = fine_tune(
            untrained_model(options),
            training_pairs(data, options["pairs"]),
            output_dir=folder,
            epochs=options["epochs"],
            batch_size=options["batch_size"],
            learning_rate=rate,
            seed=seed,
            show_progress=False,
            trainer_args={"save_strategy": "no"},
            miner=None if miner is None else GlobalProxyMiner(**miner, seed=seed),
            **recipe,
        ).model
    result = scored(model, getattr(data, split), options)
    spread = threshold_spread(model, data) if split == "test" else {}
    return {**result.mean, **spread}, result.per_query["R@1"].tolist()


def measure(options, jobs):
    """Learning rates on the dev terms first, then the test terms over all seeds."""
    settings = vars(options)
    names = [name for name in recipes() if name == REFERENCE or not options.recipes or name in options.recipes]
    found = {name: {"dev R@1": {}, "runs": []} for name in names}
    answers = {name: [] for name in names}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        rates = options.learning_rates if len(options.learning_rates) > 1 else ()  # one needs no choice
        search = [(name, rate, options.seeds[0], "dev", settings) for name in names for rate in rates]
        for job, (mean, _) in zip(search, pool.map(one_run, search), strict=True):
            found[job[0]]["dev R@1"][job[1]] = mean["R@1"]
            print(*job[:4], mean, file=sys.stderr, flush=True)
        for name in names:
            dev = found[name]["dev R@1"]
            found[name]["learning_rate"] = max(dev, key=dev.get) if dev else options.learning_rates[0]
        tests = [
            (name, found[name]["learning_rate"], seed, "test", settings) for name in names for seed in options.seeds
        ]
        for job, (mean, per_query) in zip(tests, pool.map(one_run, tests), strict=True):
            found[job[0]]["runs"].append(mean)
            answers[job[0]].append(per_query)
            print(*job[:4], mean, file=sys.stderr, flush=True)
    return found, {name: np.mean(values, axis=0) for name, values in answers.items()}


def add_comparisons(found, answers, terms):
    for name, result in found.items():
        if name != REFERENCE:
            result["against the reference"] = compare(answers[name] - answers[REFERENCE], terms)
            random = f"{name.split(',')[0]}, random"
            if name != random and random in answers:
                result["against random batches"] = compare(answers[name] - answers[random], terms)


def table(found):
    columns = [*METRICS, "OPIS", "OPIS corrected"]
    against = ("against the reference", "against random batches")
    heads = ["recipe", "learning rate", *columns, *(f"R@1 {each}, per term (95 %), p" for each in against)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, result in found.items():
        cells = [name, f"{result['learning_rate']:g}"]
        for column in columns:
            values = [run[column] for run in result["runs"]]
            cells.append(f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}")
        for each in against:
            diff = result.get(each)
            cells.append(
                f"{diff['difference']:+.4f} ({diff['low']:+.4f} to {diff['high']:+.4f}), {diff['p']:.4f}"
                if diff
                else "–"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="wordllama")
    parser.add_argument("--pairs", type=int, help="train on a random choice of this many pairs")
    parser.add_argument("--recipes", nargs="+", choices=sorted(recipes()), help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[5e-2, 1e-1])
    parser.add_argument("--max-tokens", type=int, help="of a text, in training and in evaluation")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--name", default="mining", help="of the files with the results")
    options = parser.parse_args()

    data = demo_dataset()
    found, answers = measure(options, options.jobs)
    terms = [next(iter(relevant)) for relevant in data.test.qrels.values()]
    add_comparisons(found, answers, terms)
    command = shlex.join(["python", "benchmarks/mining.py", *sys.argv[1:]])
    untrained = scored(untrained_model(vars(options)), data.test, vars(options)).mean
    content = {"command": command, "versions": library_versions(), "untrained": untrained, "results": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    pairs = len(training_pairs(data, options.pairs))
    text = [
        f"# Global proxy mining on unseen HPO terms, {options.model}",
        f"`{command}`",
        f"{pairs:,} training pairs, {len(data.test.queries):,} queries about {len(set(terms)):,} unseen terms, "
        f"{options.epochs:g} epochs, batch {options.batch_size}, seeds {options.seeds}: mean ± standard deviation. "
        f"{__doc__}",
        "Untrained model: " + ", ".join(f"{name} {value:.4f}" for name, value in untrained.items()) + ".",
        table(found),
        data.source.acknowledgement,
    ]
    (RESULTS / f"{options.name}.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()

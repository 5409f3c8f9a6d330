"""Metric-learning protocol and OPIS at 60,000 x 128 embeddings of 12,000 classes: time, memory, agreement.

Run: ``OMP_NUM_THREADS=1 python benchmarks/embeddings_eval.py``. Writes ``benchmarks/results/embeddings_eval.json`` and
``embeddings_eval.md``. Each case runs in a process of its own; memory is the peak over what was resident before the
call. pytorch-metric-learning's AccuracyCalculator is given k, the number of neighbours, at 60,000 samples: with its
default (k=None, that is N - 1) it asks for one tensor of 14 GB there and dies, so that default runs at 10,000.
``--cases NAME ...`` runs some of: {cases}.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

DIMENSIONS, PER_CLASS = 128, 5
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/embeddings_eval.py"
Values = dict[str, float]


def make_set(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes of five samples; nearly two thirds of the nearest neighbours are of the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % (samples // PER_CLASS)
    embeddings = rng.normal(size=(samples // PER_CLASS, DIMENSIONS)).astype(np.float32)[labels]
    embeddings += 1.2 * rng.normal(size=embeddings.shape).astype(np.float32)
    return embeddings, labels


def protocol(samples: int) -> Callable[[], Values]:
    from nearfar.eval import evaluate_embeddings

    embeddings, labels = make_set(samples)
    evaluate_embeddings(embeddings[:100], labels[:100] % 10)
    return lambda: evaluate_embeddings(embeddings, labels).mean


def accuracy_calculator(samples: int, neighbours: int | None) -> Callable[[], Values]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {
        "precision_at_1": "hit@1",
        "r_precision": "R-precision",
        "mean_average_precision_at_r": "MAP@R",
        "mean_reciprocal_rank": "MRR",
    }
    embeddings, labels = map(torch.from_numpy, make_set(samples))
    embeddings = torch.nn.functional.normalize(embeddings)  # Euclidean order is then that of cosines
    calculator = AccuracyCalculator(include=tuple(names), k=neighbours, device=torch.device("cpu"))
    AccuracyCalculator(include=tuple(names), k=5, device=torch.device("cpu")).get_accuracy(
        embeddings[:100], labels[:100] % 10
    )

    def call() -> Values:
        found = calculator.get_accuracy(embeddings, labels)
        return {ours: float(found[theirs]) for theirs, ours in names.items()}

    return call


def similarity_product(samples: int) -> Callable[[], Values]:
    """The product of all rows with all rows, in the tiles that OPIS uses."""
    embeddings, _ = make_set(samples)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    def call() -> Values:
        total = 0.0
        for row in range(0, samples, 256):
            for column in range(0, samples, 4096):
                total += float((embeddings[row : row + 256] @ embeddings[column : column + 4096].T)[0, 0])
        return {"checksum": total}

    return call


def consistency(samples: int, sample: int | None) -> Callable[[], Values]:
    from nearfar.eval import opis

    embeddings, labels = make_set(samples)
    opis(embeddings[:500], labels[:500] % 50)

    def call() -> Values:
        result = opis(embeddings, labels, sample=sample)
        return {
            "OPIS": result.opis,
            "noise floor": result.noise_floor,
            "sampling error": result.sampling_error,
            "low": result.interval[0],
            "high": result.interval[1],
        }

    return call


CASES: dict[str, Callable[[], Callable[[], Values]]] = {
    "evaluate_embeddings, 10,000": lambda: protocol(10_000),
    "AccuracyCalculator(k=None), 10,000": lambda: accuracy_calculator(10_000, None),
    "evaluate_embeddings, 60,000": lambda: protocol(60_000),
    "AccuracyCalculator(k=4), 60,000": lambda: accuracy_calculator(60_000, 4),
    "similarity product, 60,000": lambda: similarity_product(60_000),
    "opis, 60,000": lambda: consistency(60_000, None),
    "opis(sample=10_000), 60,000": lambda: consistency(60_000, 10_000),
    "opis(sample=10_000), 1,000,000": lambda: consistency(1_000_000, 10_000),
}
__doc__ = __doc__.format(cases="; ".join(CASES))


def alone(name: str) -> dict[str, object]:
    call = CASES[name]()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data (Linux)
    before = peak_kib()
    start = time.perf_counter()
    values = call()
    seconds = time.perf_counter() - start
    return {"case": name, "seconds": seconds, "extra_mib": (peak_kib() - before) / 1024, "values": values}


def peak_kib() -> int:
    """Peak resident memory since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def in_own_process(name: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--alone", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone)))
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / "embeddings_eval.json"
    earlier = {row["case"]: row for row in json.loads(path.read_text())["results"]} if path.exists() else {}
    for name in options.cases:
        earlier[name] = in_own_process(name)
        print(json.dumps(earlier[name]), flush=True)
    report = {
        "command": COMMAND,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "torch", "faiss-cpu", "pytorch-metric-learning")},
        "results": [earlier[name] for name in CASES if name in earlier],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    (folder / "embeddings_eval.md").write_text(markdown(report))


def markdown(report: dict) -> str:
    lines = [
        f"`{report['command']}`: {DIMENSIONS} dimensions, float32, {PER_CLASS} samples a class. Each case once, in a "
        "process of its own. At 60,000 samples AccuracyCalculator's default, k=None, asks for 14 GB at once and dies.",
        "",
        "| case | seconds | extra memory, MiB | values |",
        "|---|---|---|---|",
    ]
    for row in report["results"]:
        values = ", ".join(f"{name} {value:.6g}" for name, value in row["values"].items() if name != "checksum")
        lines.append(f"| {row['case']} | {row['seconds']:.1f} | {row['extra_mib']:.0f} | {values} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

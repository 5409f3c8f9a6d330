"""Margin heads with very many classes: time and memory of one step, forward and backward.

Time: one thread, one process, process CPU time (so that other work on the machine counts little). The contestants take
turns, in an order that is reversed every round; the table has the median of the rounds, and the median of the ratios
within a round. "three products" is the floor: the logits X W^T and the two matrix products of their gradient, into
tensors that exist already, with nothing in between (a tenth of the classes: on that many). Before any clock runs, both
libraries must agree on value and gradient.

Memory: a fresh process per contestant takes one small step first (so that everything is imported and loaded) and then
one step of the real size. It reports by how much that step raised the peak of resident memory above what was resident
before it, when the weights existed and their gradient did not. The gradient of the weights is then subtracted.

    python benchmarks/heads.py
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import nearfar
from nearfar.losses import get_loss

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
SHARE = 0.1  # of the classes, with Partial FC
# Contestant: name for get_loss, options, the floor it is held against.
HEADS: dict[str, tuple[str, dict[str, float | bool], str]] = {
    "pytorch-metric-learning ArcFaceLoss": ("pml:ArcFaceLoss", {}, "three products"),
    "ArcFaceLoss": ("arcface", {}, "three products"),
    "CosFaceLoss": ("cosface", {}, "three products"),
    "ElasticFaceLoss": ("elasticface", {}, "three products"),
    "AdaFaceLoss": ("adaface", {}, "three products"),
    "NormalizedSoftmaxLoss": ("normalized-softmax", {}, "three products"),
    "CircleHeadLoss": ("circle-head", {}, "three products"),
    "ArcFaceLoss, a tenth of the classes": ("arcface", {"sample_rate": SHARE}, "three products, a tenth"),
    "ArcFaceLoss, a tenth of the classes, sparse gradient": (
        "arcface",
        {"sample_rate": SHARE, "sparse_gradient": True},
        "three products, a tenth",
    ),
    "CircleHeadLoss, a tenth of the classes": ("circle-head", {"sample_rate": SHARE}, "three products, a tenth"),
}
FLOORS = {"three products": 1.0, "three products, a tenth": SHARE}

Step = Callable[[], None]


def make_batch(size: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Raw embeddings of varied length, and their classes."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(size.batch, size.dimension, generator=generator)
    embeddings *= 0.5 + torch.rand(size.batch, 1, generator=generator)
    return embeddings, torch.randint(size.classes, (size.batch,), generator=generator)


def make_head(name: str, size: argparse.Namespace) -> nn.Module:
    """A head with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss_name, options, _ = HEADS[name]
        return get_loss(loss_name, num_classes=size.classes, embedding_size=size.dimension, **options)


def step_of(name: str, size: argparse.Namespace) -> Step:
    """One training step of a head, up to the gradients."""
    embeddings, labels = make_batch(size)
    embeddings.requires_grad_()
    head = make_head(name, size)

    def step() -> None:
        embeddings.grad = None
        head.zero_grad(set_to_none=True)
        head(embeddings, labels).backward()

    return step


def floor_of(name: str, size: argparse.Namespace) -> Step:
    """The three matrix products alone."""
    rows, _ = make_batch(size)
    columns = torch.randn(
        round(size.classes * FLOORS[name]), size.dimension, generator=torch.Generator().manual_seed(2)
    )
    logits = torch.empty(len(rows), len(columns))
    grad_rows, grad_columns = torch.empty_like(rows), torch.empty_like(columns)

    def step() -> None:
        torch.mm(rows, columns.T, out=logits)
        torch.mm(logits, columns, out=grad_rows)
        torch.mm(logits.T, rows, out=grad_columns)

    return step


def check_agreement(size: argparse.Namespace) -> dict[str, float]:
    """Worst relative difference of value and gradients between the libraries, on the real size."""
    embeddings, labels = make_batch(size)
    their = make_head("pytorch-metric-learning ArcFaceLoss", size)
    our = make_head("ArcFaceLoss", size)
    our.load_pml_state_dict(their.state_dict())
    found = {}
    for key, head in (("theirs", their), ("ours", our)):
        leaf = embeddings.clone().requires_grad_()
        value = head(leaf, labels)
        value.backward()
        weight = head.W.grad.T if key == "theirs" else head.weight.grad
        found[key] = (value.detach(), leaf.grad, weight)
    names = ("value", "gradient of the embeddings", "gradient of the weights")
    worst = {}
    for name, one, other in zip(names, found["ours"], found["theirs"], strict=True):
        worst[name] = ((one - other).abs().max() / other.abs().max()).item()
        if worst[name] > 1e-4:
            raise SystemExit(f"the libraries disagree on the {name}: {worst[name]:.2e} relative")
    return worst


def time_all(size: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of every contestant in every round."""
    steps = {name: floor_of(name, size) for name in FLOORS} | {name: step_of(name, size) for name in HEADS}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for round_number in range(size.repeats):
        order = list(steps) if round_number % 2 == 0 else list(reversed(steps))
        for name in order:
            start = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def status(field: str) -> float:
    """A field of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure_memory(size: argparse.Namespace) -> float:
    """By how much one step raises the peak of this process, in MiB."""
    small = argparse.Namespace(**{**vars(size), "classes": 1000, "batch": 8})
    step_of(size.memory_of, small)()
    step = step_of(size.memory_of, size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def memory_in_a_new_process(name: str, size: argparse.Namespace) -> float:
    sizes = ["--classes", size.classes, "--dimension", size.dimension, "--batch", size.batch]
    command = [sys.executable, __file__, "--memory-of", name, *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def markdown(report: dict) -> str:
    size = report["size"]
    lines = [
        "# Margin heads with very many classes",
        "",
        f"{size['classes']:,} classes x {size['dimension']}, batch {size['batch']}, float32, one thread: forward and "
        f"backward. Median of {size['repeats']} rounds. `{report['command']}`",
        "",
        "| | CPU seconds | x three products | peak beyond weights, MiB | beyond weights and gradient, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        cells = [name, f"{row['seconds']:.3f}", "" if row["ratio"] is None else f"{row['ratio']:.2f}"]
        memory = row["peak_mib"]
        share = SHARE if name in HEADS and HEADS[name][1].get("sparse_gradient") else 1
        cells += ["", ""] if memory is None else [f"{memory:.0f}", f"{memory - share * report['gradient_mib']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(report["agreement"].values())
    lines += [
        "",
        f"The gradient of the weights is {report['gradient_mib']:.0f} MiB, also with a tenth of the classes unless "
        "it is sparse; ratios of a tenth are to the products on a tenth of the classes.",
        "",
        f"Worst relative difference to pytorch-metric-learning's ArcFaceLoss, in value and gradients: {worst:.1e}.",
        "",
        ", ".join(f"{name} {value}" for name, value in report["versions"].items()),
    ]
    return "\n".join(lines) + "\n"


def run(size: argparse.Namespace) -> dict:
    """The whole report."""
    agreement = check_agreement(size)
    gc.collect()
    seconds = time_all(size)
    rows = {}
    for name, times in seconds.items():
        floor = seconds[HEADS[name][2]] if name in HEADS else None
        ratios = [mine / least for mine, least in zip(times, floor, strict=True)] if floor else None
        rows[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(ratios) if ratios else None,
            "rounds": times,
            "peak_mib": memory_in_a_new_process(name, size) if name in HEADS else None,
        }
    return {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/heads.py --repeats {size.repeats}",
        "size": {name: getattr(size, name) for name in ("classes", "dimension", "batch", "repeats")},
        "gradient_mib": size.classes * size.dimension * 4 / MIB,
        "agreement": agreement,
        "rows": rows,
        "versions": {
            "nearfar": nearfar.__version__,
            "pytorch-metric-learning": version("pytorch-metric-learning"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    size = parser.parse_args()
    torch.set_num_threads(1)
    if size.memory_of:
        print(measure_memory(size))
        return
    report = run(size)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heads.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "heads.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()

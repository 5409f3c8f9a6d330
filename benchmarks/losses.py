"""nearfar's losses beside pytorch-metric-learning's: time and memory of one step, forward and backward.

Time: one thread, one process, process CPU time (so that other work on the machine counts little). The contestants take
turns, in an order that is reversed every round; the table has the median of the rounds, and the lowest and highest
ratio within a round. "products" is the floor: the three matrix products that any such loss needs (the similarities
S = X Y^T, and the gradients G Y and G^T X), walked in the same tiles, with nothing in between. Before any clock runs,
both libraries must agree on value and gradient.

Memory: a fresh process per library, loss and size, which takes one small step first (so that everything is imported
and loaded) and then one step of the real size. It reports by how much the step raised the process's peak resident
memory (``resource.getrusage``). Before the step, ballast is allocated up to the peak so far: otherwise the first
megabytes of the step would hide below it. The embeddings and their gradient are not part of the figure, since both
exist before. Resident memory is what the machine must have; an allocation that is never touched does not count.

    python benchmarks/losses.py --sizes 1024 4096 --repeats 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import THEIRS, Step, heading, in_turns, number_from_a_new_process, raised_peak, surroundings

from nearfar.losses import get_loss
from nearfar.losses.engine import Comparison, Dot, LabelTarget

RESULTS = Path(__file__).parent / "results"
PER_CLASS = 4  # samples of each class in a batch


@dataclass(frozen=True)
class Contest:
    """A loss of nearfar by its registry name, its peer by the name over there, and that one's largest size x width."""

    ours: str
    theirs: str | None = None
    largest: int = 10**9

    def at(self, size: int, dimension: int) -> Contest:
        """Without the other side where that does not fit in memory."""
        return self if size * dimension <= self.largest else Contest(self.ours)


# A further loss joins with one line.
CONTESTS = {
    "CircleLoss": Contest("circle", "pml:CircleLoss"),
    "MultiSimilarityLoss": Contest("multi-similarity", "pml:MultiSimilarityLoss"),
    # Theirs holds both vectors of every pair: at 1024 x 512 or 4096 x 128 that does not fit in 24 GiB.
    "ThresholdConsistentMarginLoss": Contest(
        "threshold-consistent-margin", "pml:ThresholdConsistentMarginLoss", 1024 * 128
    ),
    "SupConLoss": Contest("supcon", "pml:SupConLoss"),
    "ContrastiveLoss": Contest("contrastive", "pml:ContrastiveLoss"),
    "TripletMarginLoss": Contest("triplet-margin", "pml:TripletMarginLoss"),
    "NTXentLoss": Contest("ntxent"),  # theirs holds positives x negatives: 12.8 GB at 1024
}


def batch(size: int, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings that already know their class a little, in random order."""
    generator = torch.Generator().manual_seed(size)
    labels = torch.arange(size) // PER_CLASS
    centres = torch.randn(size // PER_CLASS + 1, dimension, generator=generator)
    embeddings = centres[labels] + 2 * torch.randn(size, dimension, generator=generator)
    order = torch.randperm(size, generator=generator)
    return embeddings[order].requires_grad_(), labels[order]


def step_of(loss: torch.nn.Module, embeddings: torch.Tensor, labels: torch.Tensor) -> Step:
    """One forward and backward; returns the value."""
    embeddings.grad = torch.zeros_like(embeddings)

    def step() -> float:
        value = loss(embeddings, labels)
        value.backward()
        return value.item()

    return step


def products_of(embeddings: torch.Tensor, labels: torch.Tensor) -> Step:
    """The three products of a streamed loss, in its tiles."""
    points = embeddings.detach()
    comparison = Comparison(points, points, LabelTarget(labels, labels, 0))
    everything = slice(0, len(points))

    def step() -> float:
        walk = Dot().walk(points, points, True, True)
        for rows in comparison.row_blocks():
            tile = walk.tile(rows, everything)
            walk.pull(rows, everything, tile, tile)
        return 0.0

    return step


def check_agreement(name: str, contest: Contest, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Both libraries compute the same function."""
    if contest.theirs is None:
        return
    found = []
    for key in (contest.ours, contest.theirs):
        value = step_of(get_loss(key), embeddings, labels)()
        found.append((value, embeddings.grad.clone()))
    (one, one_gradient), (other, other_gradient) = found
    error = ((one_gradient - other_gradient).norm() / other_gradient.norm()).item()
    if abs(one - other) > 1e-4 * abs(other) or error > 1e-3:
        raise SystemExit(f"{name}: the libraries disagree: {one} and {other}, gradients by {error:.1e}")


def measure_time(name: str, contest: Contest, size: int, dimension: int, repeats: int) -> dict:
    embeddings, labels = batch(size, dimension)
    check_agreement(name, contest, embeddings, labels)
    steps = {
        "nearfar": step_of(get_loss(contest.ours), embeddings, labels),
        "products": products_of(embeddings, labels),
    }
    if contest.theirs is not None:
        steps[THEIRS] = step_of(get_loss(contest.theirs), embeddings, labels)
    times = in_turns(steps, repeats)
    median = {key: statistics.median(values) for key, values in times.items()}
    row = {
        "loss": name,
        "size": size,
        "dimension": dimension,
        "cpu_seconds": times,
        "median_cpu_seconds": median,
        "in_products": {key: median[key] / median["products"] for key in median},
    }
    if THEIRS in times:
        ratios = [theirs / ours for theirs, ours in zip(times[THEIRS], times["nearfar"], strict=True)]
        row |= {"speedup": statistics.median(ratios), "speedup_range": [min(ratios), max(ratios)]}
    return row


def memory_of_one_step(key: str, size: int, dimension: int) -> float:
    """In MiB; run in a process of its own."""
    loss = get_loss(key)
    step_of(loss, *batch(64, dimension))()
    return raised_peak(step_of(loss, *batch(size, dimension)))


def measure_memory(contest: Contest, size: int, dimension: int) -> dict[str, float]:
    found = {}
    for library, key in (("nearfar", contest.ours), (THEIRS, contest.theirs)):
        if key is not None:
            size_of = ("--sizes", size, "--dimensions", dimension)
            found[library] = number_from_a_new_process(__file__, "--memory-of", key, *size_of)
    return found


def command_of(arguments: argparse.Namespace) -> str:
    sizes, dimensions = (" ".join(map(str, values)) for values in (arguments.sizes, arguments.dimensions))
    chosen = "" if arguments.losses == list(CONTESTS) else f"--losses {' '.join(arguments.losses)} "
    options = f"--sizes {sizes} --dimensions {dimensions} --repeats {arguments.repeats}"
    return f"python benchmarks/losses.py {chosen}{options}"


def as_markdown(report: dict) -> str:
    lines = [
        "# Losses: one step, forward and backward",
        "",
        f"{heading(report)};",
        f"float32, {report['samples_per_class']} samples per class. Medians of CPU time; the range is that of the",
        "ratio within a round, the floor the three matrix products. How it is measured: `benchmarks/losses.py`.",
        "",
        "| loss | batch | pytorch-metric-learning | nearfar | faster | range | times the floor: PML, nearfar "
        "| extra memory: PML | nearfar | less |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        times, memory, floor = row["median_cpu_seconds"], row["extra_mebibytes"], row["in_products"]
        ours = [f"{1e3 * times['nearfar']:.1f} ms", f"{memory['nearfar']:.1f} MiB"]
        theirs, faster, products, held, less = "–", "– | –", f"–, {floor['nearfar']:.2f}", "–", "–"
        if THEIRS in times:
            lowest, highest = row["speedup_range"]
            theirs, held = f"{1e3 * times[THEIRS]:.1f} ms", f"{memory[THEIRS]:.1f} MiB"
            faster = f"{row['speedup']:.1f}x | {lowest:.1f}-{highest:.1f}x"
            products = f"{floor[THEIRS]:.1f}, {floor['nearfar']:.2f}"
            less = f"{memory[THEIRS] / max(memory['nearfar'], 0.1):.0f}x"
        shape = f"{row['size']} x {row['dimension']}"
        cells = [row["loss"], shape, theirs, ours[0], faster, products, held, ours[1], less]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096], help="batch sizes")
    parser.add_argument("--losses", nargs="+", choices=list(CONTESTS), default=list(CONTESTS), help="which of them")
    parser.add_argument("--repeats", type=int, default=7, help="rounds per loss and size")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 512], help="of the embeddings")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for losses.json and losses.md")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of_one_step(arguments.memory_of, arguments.sizes[0], arguments.dimensions[0]))
        return
    report = {**surroundings(command_of(arguments)), "samples_per_class": PER_CLASS, "rows": []}
    for size, dimension in itertools.product(arguments.sizes, arguments.dimensions):
        for name, contest in ((name, CONTESTS[name].at(size, dimension)) for name in arguments.losses):
            row = measure_time(name, contest, size, dimension, arguments.repeats)
            row["extra_mebibytes"] = measure_memory(contest, size, dimension)
            report["rows"].append(row)
            print(name, size, dimension, row["in_products"], row["extra_mebibytes"], file=sys.stderr)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "losses.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(report)
    (arguments.output / "losses.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

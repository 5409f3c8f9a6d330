"""nearfar's in-batch miners beside pytorch-metric-learning's: time and memory of mining one batch.

Time: one thread, one process, process CPU time (so that other work on the machine counts little). The contestants take
turns, in an order that is reversed every round; the table has the median of the rounds, and the lowest and highest
ratio within a round. "product" is the floor that every miner must pay, the similarities ``x @ x.T`` of unit vectors in
one call. Before any clock runs, both libraries must return the same pairs or triplets, but for one in a thousand where
rounding may decide; the table says how many differ. The distance-weighted miners draw at random and are not compared.

Memory: a fresh process per library, miner and size, as in ``benchmarks/losses.py``, and beside it the bytes of the
indices themselves, which are a part of it.

    python benchmarks/miners.py --sizes 1024 4096 --repeats 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from losses import PER_CLASS, batch
from measuring import THEIRS, Step, heading, in_turns, number_from_a_new_process, raised_peak, surroundings
from pytorch_metric_learning import miners as pml

from nearfar import miners

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Contest:
    """A miner of nearfar, the same of the other library, and the largest batch that this can mine in reach."""

    ours: Callable[[], torch.nn.Module]
    theirs: Callable[[], torch.nn.Module] | None = None
    largest: int = 10**9
    is_random: bool = False

    def at(self, size: int) -> Contest:
        """Without the other side where that needs too much."""
        return self if size <= self.largest else Contest(self.ours)


# Their triplet miners list all triplets of the batch first: 50 million at 4096, with vectors for each the angular one.
CONTESTS = {
    "MultiSimilarityMiner": Contest(miners.MultiSimilarityMiner, pml.MultiSimilarityMiner),
    "BatchHardMiner": Contest(miners.BatchHardMiner, pml.BatchHardMiner),
    "semi-hard, the hardest": Contest(lambda: miners.TripletMarginMiner(0.05, "semihard", negatives="hardest")),
    "semi-hard, all": Contest(
        lambda: miners.TripletMarginMiner(0.05, "semihard"),
        lambda: pml.TripletMarginMiner(margin=0.05, type_of_triplets="semihard"),
        1024,
    ),
    "AngularMiner": Contest(lambda: miners.AngularMiner(25), lambda: pml.AngularMiner(angle=25), 512),
    "DistanceWeightedMiner": Contest(miners.DistanceWeightedMiner, pml.DistanceWeightedMiner, is_random=True),
}


def contestants(contest: Contest, size: int, dimension: int) -> tuple[dict[str, Step], torch.Tensor, torch.Tensor]:
    embeddings, labels = batch(size, dimension)
    points = torch.nn.functional.normalize(embeddings.detach())
    steps: dict[str, Step] = {}
    for library, make in (("nearfar", contest.ours), (THEIRS, contest.theirs)):
        if make is not None:
            miner = make()
            steps[library] = lambda miner=miner: miner(points, labels)
    return steps, points, labels


def as_numbers(indices: tuple[torch.Tensor, ...], size: int) -> list[torch.Tensor]:
    """Each pair or triplet as one number, sorted."""
    groups = [indices] if len(indices) == 3 else [indices[:2], indices[2:]]
    found = []
    for group in groups:
        number = torch.zeros_like(group[0])
        for part in group:
            number = number * size + part
        found.append(number.sort().values)
    return found


def count_differing(name: str, steps: dict[str, Step], size: int) -> int:
    """How many pairs or triplets only one of the libraries finds."""
    ours, theirs = (as_numbers(steps[library](), size) for library in ("nearfar", THEIRS))
    differing = 0
    for mine, other in zip(ours, theirs, strict=True):
        counts = torch.cat([mine, other]).unique(return_counts=True)[1]
        differing += int((counts == 1).sum())
        if differing > 1e-3 * len(other):
            raise SystemExit(f"{name}, {size}: the libraries disagree about {differing} of {len(other)}")
    return differing


def measure_time(name: str, contest: Contest, size: int, dimension: int, repeats: int) -> dict:
    steps, points, _ = contestants(contest, size, dimension)
    compared = THEIRS in steps and not contest.is_random
    differing = count_differing(name, steps, size) if compared else None
    steps["product"] = lambda: points @ points.T
    times = in_turns(steps, repeats)
    median = {key: statistics.median(values) for key, values in times.items()}
    indices = steps["nearfar"]()
    row = {
        "miner": name,
        "size": size,
        "dimension": dimension,
        "differing": differing,
        "found": [len(part) for part in indices],
        "index_mebibytes": sum(part.numel() * 8 for part in indices) / 2**20,
        "cpu_seconds": times,
        "median_cpu_seconds": median,
    }
    for key, whose in (("in_products", "product"), ("speedup", THEIRS)):
        if whose in times:
            pairs = zip(times["nearfar"], times[whose], strict=True)
            ratios = [mine / other if whose == "product" else other / mine for mine, other in pairs]
            row |= {key: statistics.median(ratios), f"{key}_range": [min(ratios), max(ratios)]}
    return row


def memory_of_one_step(name: str, library: str, size: int, dimension: int) -> float:
    """In MiB; run in a process of its own."""
    contestants(CONTESTS[name], 64, dimension)[0][library]()
    return raised_peak(contestants(CONTESTS[name], size, dimension)[0][library])


def measure_memory(name: str, contest: Contest, size: int, dimension: int) -> dict[str, float]:
    found = {}
    for library, make in (("nearfar", contest.ours), (THEIRS, contest.theirs)):
        if make is not None:
            size_of = ("--sizes", size, "--dimensions", dimension)
            found[library] = number_from_a_new_process(__file__, "--memory-of", name, library, *size_of)
    return found


def command_of(arguments: argparse.Namespace) -> str:
    sizes, dimensions = (" ".join(map(str, values)) for values in (arguments.sizes, arguments.dimensions))
    chosen = "" if arguments.miners == list(CONTESTS) else f"--miners {shlex.join(arguments.miners)} "
    options = f"--sizes {sizes} --dimensions {dimensions} --repeats {arguments.repeats}"
    return f"python benchmarks/miners.py {chosen}{options}"


def as_markdown(report: dict) -> str:
    lines = [
        "# In-batch miners",
        "",
        f"{heading(report)};",
        f"float32, {report['samples_per_class']} samples per class. Medians of CPU time; the ranges are those of the",
        "ratio within a round, the product is `x @ x.T`. How it is measured: `benchmarks/miners.py`.",
        "",
        "| miner | batch | found | differ | pytorch-metric-learning | nearfar | faster | range | in products | range "
        "| indices | extra memory: PML | nearfar |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        times, memory = row["median_cpu_seconds"], row["extra_mebibytes"]
        theirs, faster, held = "–", "– | –", "–"
        if THEIRS in times:
            lowest, highest = row["speedup_range"]
            theirs, held = f"{1e3 * times[THEIRS]:.1f} ms", f"{memory[THEIRS]:.1f} MiB"
            faster = f"{row['speedup']:.1f}x | {lowest:.1f}-{highest:.1f}x"
        lowest, highest = row["in_products_range"]
        counts = row["found"][::2] if len(row["found"]) == 4 else row["found"][:1]
        cells = [
            row["miner"],
            f"{row['size']} x {row['dimension']}",
            " + ".join(f"{count:,}" for count in counts),
            "–" if row["differing"] is None else str(row["differing"]),
            theirs,
            f"{1e3 * times['nearfar']:.1f} ms",
            faster,
            f"{row['in_products']:.2f} | {lowest:.2f}-{highest:.2f}",
            f"{row['index_mebibytes']:.1f} MiB",
            held,
            f"{memory['nearfar']:.1f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096], help="batch sizes")
    parser.add_argument("--miners", nargs="+", choices=list(CONTESTS), default=list(CONTESTS), help="which of them")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128], help="of the embeddings")
    parser.add_argument("--repeats", type=int, default=7, help="rounds per miner and size")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for miners.json and miners.md")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of_one_step(*arguments.memory_of, arguments.sizes[0], arguments.dimensions[0]))
        return
    report = {**surroundings(command_of(arguments)), "samples_per_class": PER_CLASS, "rows": []}
    for size, dimension in itertools.product(arguments.sizes, arguments.dimensions):
        for name, contest in ((name, CONTESTS[name].at(size)) for name in arguments.miners):
            row = measure_time(name, contest, size, dimension, arguments.repeats)
            row["extra_mebibytes"] = measure_memory(name, contest, size, dimension)
            report["rows"].append(row)
            print(name, size, dimension, row["in_products"], row["extra_mebibytes"], file=sys.stderr)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "miners.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(report)
    (arguments.output / "miners.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

"""Time of one step, forward and backward, of the query-document losses, in units of the matrix products they need.

One thread, one process, process CPU time. All losses take turns, in an order that is reversed every round; the table
has the median over the rounds of the ratio within a round, and the lowest and highest. "products" is the floor: the
similarities S = Q D^T and the gradients G D and G^T Q, walked in the same tiles, with nothing in between. "dense
cross-entropy" is the symmetric softmax in plain torch, which holds the whole matrix.

    python benchmarks/documents.py --sizes 4096 --dimensions 128 512 --repeats 7
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from measuring import Step, heading, in_turns, surroundings
from torch.nn import functional as F

from nearfar.losses import get_loss
from nearfar.losses.engine import Comparison, Dot, LabelTarget
from nearfar.losses.label_batch import normalise

RESULTS = Path(__file__).parent / "results"

# A further loss joins with one line: its row in the table, registry name, options, and the target in products.
CONTESTS = {
    "BiXSE": ("bixse", {"bias": -8.0}, 1.8),
    "BiXSE, learned scale": ("bixse", {"bias": -8.0, "learn_scale": True}, 1.8),
    "SigLIP": ("siglip", {}, 1.8),
    "InfoNCE": ("info-nce", {}, 1.8),
    "InfoNCE, symmetric": ("info-nce", {"symmetric": True}, 2.0),
    "InfoNCE, symmetric, scale 100": ("info-nce", {"symmetric": True, "scale": 100}, 2.0),
    "Decoupled softmax": ("decoupled-softmax", {}, 1.8),
    "SoftTop-k": ("soft-top-k", {}, 5.0),
    "Mann-Whitney": ("mann-whitney", {}, 2.0),
    "Mann-Whitney, temperature 0.1": ("mann-whitney", {"temperature": 0.1}, 2.0),
}
Batch = tuple[torch.Tensor, torch.Tensor]


def batch(size: int, dimension: int) -> Batch:
    """Queries and documents that already know each other a little."""
    generator = torch.Generator().manual_seed(size)
    meaning = torch.randn(size, dimension, generator=generator)
    sides = [meaning + 1.5 * torch.randn(size, dimension, generator=generator) for _ in range(2)]
    return sides[0].requires_grad_(), sides[1].requires_grad_()


def step_of(loss: torch.nn.Module, queries: torch.Tensor, documents: torch.Tensor) -> Step:
    """One forward and backward; returns the value."""
    queries.grad, documents.grad = torch.zeros_like(queries), torch.zeros_like(documents)

    def step() -> float:
        value = loss(queries, documents)
        value.backward()
        return value.item()

    return step


def products_of(queries: torch.Tensor, documents: torch.Tensor) -> Step:
    """The three products of a streamed loss, in its tiles."""
    rows, columns = normalise(queries.detach()), normalise(documents.detach())
    own = torch.arange(len(rows))
    comparison, everything = Comparison(rows, columns, LabelTarget(own, own)), slice(0, len(columns))

    def step() -> float:
        walk = Dot().walk(rows, columns, True, True)
        for block in comparison.row_blocks():
            tile = walk.tile(block, everything)
            walk.pull(block, everything, tile, tile)
        return 0.0

    return step


class DenseCrossEntropy(torch.nn.Module):
    """Symmetric InfoNCE at temperature 0.05 on the whole matrix."""

    def forward(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Mean over both directions."""
        logits = 20 * F.normalize(queries) @ F.normalize(documents).T  # (B, B)
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def measure(size: int, dimension: int, repeats: int) -> list[dict]:
    pair = batch(size, dimension)
    steps = {name: step_of(get_loss(key, **options), *pair) for name, (key, options, _) in CONTESTS.items()}
    steps["dense cross-entropy"] = step_of(DenseCrossEntropy(), *pair)
    steps["products"] = products_of(*pair)
    values = {name: step() for name, step in steps.items()}
    if abs(values["InfoNCE, symmetric"] - values["dense cross-entropy"]) > 1e-4 * values["dense cross-entropy"]:
        raise SystemExit("symmetric InfoNCE and torch's cross-entropy disagree")
    times = in_turns(steps, repeats)
    rows = []
    for name in [*CONTESTS, "dense cross-entropy"]:
        ratios = [own / floor for own, floor in zip(times[name], times["products"], strict=True)]
        rows.append(
            {
                "loss": name,
                "size": size,
                "dimension": dimension,
                "in_products": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "target": CONTESTS[name][2] if name in CONTESTS else None,
                "cpu_seconds": times[name],
                "products_cpu_seconds": times["products"],
            }
        )
    return rows


def table(rows: list[dict], made_by: str) -> str:
    lines = [
        "# Query-document losses: time in units of their three matrix products",
        "",
        f"{made_by};",
        "CPU time, median of the rounds (lowest to highest).",
        "",
        "| loss | queries x dimension | products | range | target | ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["range"]
        target = "" if row["target"] is None else f"{row['target']:.1f}"
        milliseconds = 1000 * statistics.median(row["cpu_seconds"])
        lines.append(
            f"| {row['loss']} | {row['size']} x {row['dimension']} | {row['in_products']:.2f} | "
            f"{low:.2f} to {high:.2f} | {target} | {milliseconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for size in arguments.sizes
        for dimension in arguments.dimensions
        for row in measure(size, dimension, arguments.repeats)
    ]
    sizes, dimensions = (" ".join(map(str, values)) for values in (arguments.sizes, arguments.dimensions))
    command = f"python benchmarks/documents.py --sizes {sizes} --dimensions {dimensions} --repeats {arguments.repeats}"
    found = {**surroundings(command), "results": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "documents.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(rows, heading(found))
    (RESULTS / "documents.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""A batch of 65,536 in bounded memory: every loss that says it streams, forward and backward, as the batch grows.

Each measurement runs in a process of its own: a small warm-up, then one step. Memory is the growth of the peak resident
set over that of the process with its inputs, less the gradients of the inputs. Time is that one step's, in seconds of
processor time, which other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CLASS_SIZE = 4
LIMIT_MIB = 1024


def inputs(kind, batch, dimension):
    """Random embeddings with four samples a class, or queries with their documents."""
    import torch

    generator = torch.Generator().manual_seed(0)
    first = torch.randn(batch, dimension, generator=generator).requires_grad_()
    if kind == "documents":
        second = torch.randn(batch, dimension, generator=generator).requires_grad_()
        return (first, second), [first, second]
    labels = torch.randperm(batch, generator=generator) // CLASS_SIZE
    return (first, labels), [first]


def step(loss, arguments, leaves):
    for leaf in leaves:
        leaf.grad = None
    loss(*arguments).backward()


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, batch, dimension, threads):
    """One step of one loss, in this process."""
    import torch

    from nearfar.losses import get_loss, list_losses

    torch.set_num_threads(threads)
    entry = next(entry for entry in list_losses() if entry.name == name)
    options = {"num_classes": 1024, "embedding_size": dimension} if "num_classes" in entry.options else {}
    torch.manual_seed(0)
    loss = get_loss(name, **options)
    kind = entry.loss.capabilities.inputs
    step(loss, *clipped(inputs(kind, 512, dimension), options))
    arguments, leaves = clipped(inputs(kind, batch, dimension), options)
    before, started = peak_mib(), time.process_time()
    step(loss, arguments, leaves)
    seconds = time.process_time() - started
    gradients = sum(leaf.grad.numel() * leaf.grad.element_size() for leaf in leaves) / 2**20
    print(json.dumps({"seconds": seconds, "extra_mib": max(0.0, peak_mib() - before - gradients)}))


def clipped(prepared, options):
    """Class numbers within the head's table."""
    arguments, leaves = prepared
    if options:
        arguments = (arguments[0], arguments[1] % options["num_classes"])
    return arguments, leaves


def run(name, batch, options):
    command = [sys.executable, __file__, "--one", name, "--sizes", str(batch)]
    command += ["--dimension", str(options.dimension), "--threads", str(options.threads)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        return {"failed": finished.stderr.strip().splitlines()[-1:]}
    return json.loads(finished.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 4096, 16384, 65536])
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--losses", nargs="+")
    parser.add_argument("--one", help="measure this loss in this process and print JSON")
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.sizes[0], options.dimension, options.threads)
        return
    from nearfar.losses import list_losses

    names = options.losses or [entry.name for entry in list_losses() if entry.loss.capabilities.streams]
    results = {}
    for name in names:
        results[name] = {batch: run(name, batch, options) for batch in options.sizes}
        print(name, results[name], file=sys.stderr, flush=True)
        write(results, options)


def write(results, options):
    from nearfar.eval.report import library_versions

    command = "python benchmarks/large_batch.py " + " ".join(sys.argv[1:])
    content = {"command": command.strip(), "versions": library_versions(), "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "large_batch.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    heads = " | ".join(f"{batch:,}: s | MiB" for batch in options.sizes)
    lines = [f"| loss | {heads} |", "|---|" + "---|---|" * len(options.sizes)]
    for name, row in results.items():
        cells = [
            "failed | –" if "failed" in found else f"{found['seconds']:.2f} | {found['extra_mib']:.0f}"
            for found in row.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = [
        "# Large batches",
        f"`{command.strip()}`",
        f"Forward and backward of batch x {options.dimension} float32, {options.threads} thread(s). {__doc__}",
        f"The limit at the largest batch is {LIMIT_MIB} MiB.",
        "\n".join(lines),
    ]
    (RESULTS / "large_batch.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

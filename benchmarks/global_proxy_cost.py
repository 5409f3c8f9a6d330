"""What global proxy mining costs: the plan of an epoch for many classes, and its share of training on HPO.

Plans are of simulated proxies: clusters of about 50 classes on the unit sphere. Each runs in a process of its own;
memory is the growth of the peak resident set over that of the process with its proxies. Hardness is the mean similarity
of two classes of a group; up to 100,000 classes it stands beside that of the plan as the method states it, one class
after the other, each searched exactly.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nearfar.data import demo_dataset, demo_model
from nearfar.eval.report import library_versions
from nearfar.losses import CircleLoss
from nearfar.miners import GlobalProxyMiner
from nearfar.miners.proxy_plan import epoch_groups, group_hardness
from nearfar.retrieval import fine_tune

RESULTS = Path(__file__).parent / "results"
GROUP = 64
EXACT_UP_TO = 100_000


def simulated_proxies(classes, dimension, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clusters = max(1, classes // 50)
    centres = torch.randn(clusters, dimension, generator=generator)
    proxies = torch.randn(classes, dimension, generator=generator).mul_(0.7)
    proxies.add_(centres[torch.randint(clusters, (classes,), generator=generator)])
    return proxies.div_(proxies.norm(dim=1, keepdim=True))


def one_after_the_other(proxies, size, random):
    """The plan with one exact search per group, the oracle."""
    left = torch.from_numpy(random.permutation(len(proxies)))
    groups = []
    while len(left) >= size:
        near = (proxies[left] @ proxies[left[0]]).topk(size).indices
        groups.append(left[near].numpy())
        keep = torch.ones(len(left), dtype=torch.bool)
        keep[near] = False
        left = left[keep]
    return groups


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_plan(classes, dimension, threads):
    """One plan, in this process."""
    torch.set_num_threads(threads)
    proxies = simulated_proxies(classes, dimension)
    before = peak_mib()
    wall, processor = time.perf_counter(), time.process_time()
    groups, left = epoch_groups(np.ones(classes, dtype=np.int64), GROUP, np.random.default_rng(0), proxies)
    found = {
        "seconds": time.perf_counter() - wall,
        "processor seconds": time.process_time() - processor,
        "extra MiB": peak_mib() - before,
        "groups": len(groups),
        "left": len(left),
        "hardness": group_hardness(proxies, groups),
        "random hardness": group_hardness(
            proxies, epoch_groups(np.ones(classes, dtype=np.int64), GROUP, np.random.default_rng(0), None)[0]
        ),
    }
    if classes <= EXACT_UP_TO:
        exact = one_after_the_other(proxies, GROUP, np.random.default_rng(1))
        found["exact hardness"] = group_hardness(proxies, exact)
    print(json.dumps(found))


def measure_share(epochs):
    """Seconds of an HPO run, and those of them spent in planning and in the bank."""
    spent = dict.fromkeys(("plan", "bank"), 0.0)

    class Timed(GlobalProxyMiner):
        def begin_epoch(self, epoch):
            started = time.perf_counter()
            super().begin_epoch(epoch)
            spent["plan"] += time.perf_counter() - started

        def count(self, proxies, classes):
            started = time.perf_counter()
            super().count(proxies, classes)
            spent["bank"] += time.perf_counter() - started

    data = demo_dataset()
    found = {}
    for name, proxy_dim in (("with head", 128), ("without head", None)):
        spent.update(plan=0.0, bank=0.0)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fine_tune(
                demo_model(),
                data.train,
                loss=CircleLoss(gamma=32),
                miner=Timed(proxy_dim=proxy_dim),
                output_dir=folder,
                epochs=epochs,
                learning_rate=5e-2,
                show_progress=False,
                trainer_args={"save_strategy": "no"},
            )
            total = time.perf_counter() - started
        found[name] = {"seconds": total, **{f"{part} seconds": value for part, value in spent.items()}}
        found[name]["share"] = sum(spent.values()) / total
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="measure the first size in this process and print JSON")
    options = parser.parse_args()
    if options.one:
        measure_plan(options.classes[0], options.dimension, options.threads)
        return
    plans = {}
    for classes in options.classes:
        command = [sys.executable, __file__, "--one", "--classes", str(classes)]
        command += ["--dimension", str(options.dimension), "--threads", str(options.threads)]
        plans[classes] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(classes, plans[classes], file=sys.stderr, flush=True)
    share = measure_share(options.epochs)
    write(plans, share, options)


def write(plans, share, options):
    command = ("python benchmarks/global_proxy_cost.py " + " ".join(sys.argv[1:])).strip()
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command, "versions": library_versions(), "plans": plans, "HPO": share}
    (RESULTS / "global_proxy_cost.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    columns = ("seconds", "processor seconds", "extra MiB", "hardness", "exact hardness", "random hardness")
    lines = ["| classes | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for classes, found in plans.items():
        cells = [f"{found[name]:.3f}" if name in found else "–" for name in columns]
        lines.append(f"| {classes:,} | " + " | ".join(cells) + " |")
    shares = ["| HPO, circle | run, s | plan, s | bank, s | share |", "|---|---|---|---|---|"]
    for name, found in share.items():
        times = " | ".join(f"{found[part]:.3f}" for part in ("seconds", "plan seconds", "bank seconds"))
        shares.append(f"| {name} | {times} | {found['share']:.2%} |")
    text = [
        "# The cost of global proxy mining",
        f"`{command}`",
        f"{options.dimension} dimensions, groups of {GROUP}, {options.threads} threads. {__doc__}",
        "\n".join(lines),
        f"Training on HPO, {options.epochs} epochs, batch 256, threads as torch chooses:",
        "\n".join(shares),
    ]
    (RESULTS / "global_proxy_cost.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(lines), "\n".join(shares), sep="\n\n")


if __name__ == "__main__":
    main()

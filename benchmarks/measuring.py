"""What the benchmarks of losses and miners share: clocks, memory, and what stands around a figure."""

from __future__ import annotations

import gc
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nearfar

THEIRS = "pytorch-metric-learning"
Step = Callable[[], Any]


def cpu_seconds(step: Step) -> float:
    gc.collect()
    start = time.process_time()
    step()
    return time.process_time() - start


def in_turns(steps: Mapping[str, Step], repeats: int) -> dict[str, list[float]]:
    """Process CPU seconds of each step in every round; the order is reversed from round to round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for number in range(repeats):
        for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(cpu_seconds(steps[name]))
    return times


def _peak_mebibytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _resident_mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def raised_peak(step: Step) -> float:
    """By how many MiB a step raises the peak of this process's resident memory.

    Ballast fills the memory up to the peak so far: the first megabytes of the step would hide below it.
    """
    gap = max(0.0, _peak_mebibytes() - _resident_mebibytes())
    ballast = torch.ones(int(gap * 2**18))  # float32: 2^18 are a MiB
    before = _peak_mebibytes()
    step()
    used = _peak_mebibytes() - before
    del ballast
    return used


def number_from_a_new_process(script: str, *arguments: object) -> float:
    """What ``python script *arguments`` prints last."""
    command = [sys.executable, script, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def surroundings(command: str) -> dict[str, Any]:
    """Command, versions and machine of a report."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = {name: version(name) for name in (THEIRS, "torch", "numpy")}
    return {
        "command": command,
        "versions": {"nearfar": nearfar.__version__, **packages, "python": platform.python_version()},
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def heading(report: Mapping[str, Any]) -> str:
    """A report's surroundings in a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    load = f"load {report['load_average']:.1f}"
    return f"`{report['command']}`; {versions}; {report['cpu']}, {report['threads']} thread(s), {load}"

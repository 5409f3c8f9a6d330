"""What ``import nearfar`` costs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("pytorch_metric_learning", "sentence_transformers", "transformers", "faiss", "scipy", "datasets", "plotly")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_losses_import_nothing_heavy():
    code = f"import sys, nearfar.losses; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_adds_less_than_half_a_second_to_torch():
    code = (
        "import time, torch; start = time.perf_counter(); import nearfar, nearfar.losses; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.5

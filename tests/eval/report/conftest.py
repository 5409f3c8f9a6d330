from __future__ import annotations

import pytest

from nearfar.eval.report import Report
from tests.eval.report.report_samples import make_section


@pytest.fixture
def report() -> Report:
    return Report(
        title="A first comparison",
        dataset="unseen terms",
        models=[make_section("before", 1), make_section("after", 2)],
        primary_metric="R@1",
        acknowledgement="Thanks to the makers of the data.",
        recipe={"loss": {"name": "circle", "m": 0.4}, "seed": 0},
        versions={"nearfar": "0.1.0"},
        created="2026-01-09T07:05:00+00:00",
        notes=["A remark."],
    )

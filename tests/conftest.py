"""What the whole run says at its end about the browser: what to install, or where its pictures are."""

from __future__ import annotations

import pytest

from tests.eval.report.chromium import BINARY, SCREENSHOTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [report for kind in ("passed", "failed", "skipped") for report in terminalreporter.stats.get(kind, [])]
    if not any("tests/eval/report/test_browser" in report.nodeid for report in told):
        return
    if BINARY is None:
        terminalreporter.write_line(
            "The report was not opened in a browser. `make browser` (or apt-get install chromium) lets its tests run.",
            yellow=True,
            bold=True,
        )
    elif SCREENSHOTS.exists():
        terminalreporter.write_line(f"Screenshots of the report, light and dark: {SCREENSHOTS}")

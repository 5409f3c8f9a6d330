"""OPIS's interval and its warning about noise, on the page, in Markdown and in JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from nearfar.eval import OPISResult, opis
from nearfar.eval.report import Report
from nearfar.eval.report.comparison import verdict
from nearfar.eval.report.html import report_html
from nearfar.eval.report.markdown import report_markdown
from nearfar.eval.report.serialize import report_json
from tests.eval.report.report_samples import make_opis
from tests.eval.report.test_report_html import Page


def measured(samples: int) -> OPISResult:
    """OPIS of forty classes that are all alike, so that what it shows is noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(40).repeat(samples)
    return opis(np.eye(40)[labels] + 0.2 * rng.normal(size=(len(labels), 40)), labels)


@pytest.fixture
def noisy(report: Report) -> Report:
    before, after = report.models
    return replace(report, models=[replace(before, opis=make_opis()), replace(after, opis=measured(5))])


def test_the_page_shows_interval_noise_and_warning(noisy: Report) -> None:
    found = noisy.models[1].opis
    assert found is not None
    assert found.warning is not None
    page = Page(report_html(noisy))
    (table,) = [table for table in page.tables if table[0][0] == "Quantity" and table[1][0] == "OPIS"]
    rows = {row[0]: row[1:] for row in table}
    low, high = (f"{end:.3g}" for end in found.interval)
    assert rows["Its 95\u00a0% interval, drawing classes again"][1] == f"{low} to {high}"
    assert rows["Share of OPIS that is noise"][0] == "25\u00a0%"
    assert 50 < float(rows["Share of OPIS that is noise"][1].split()[0]) <= 100
    assert page.text.count("Mostly noise.") == 1
    assert f"“after”: {found.warning}." in page.text
    assert f"between {low} and {high}, noise included" in page.text


def test_markdown_and_json_hold_them_too(noisy: Report) -> None:
    found = noisy.models[1].opis
    assert found is not None
    text = report_markdown(noisy)
    assert "| Its 95 % interval, drawing classes again |" in text
    assert "- “after”: more than half of this OPIS" in text
    before, after = json.loads(report_json(noisy))["models"]
    assert after["opis"]["interval"] == list(found.interval)
    assert after["opis"]["warning"] == found.warning
    assert before["opis"]["warning"] is None


def test_the_verdict_warns(noisy: Report, report: Report) -> None:
    warning = "More than half of the OPIS of “after” is noise; read its corrected value only."
    assert warning in verdict(noisy).points
    assert not any("is noise" in point for point in verdict(report).points)
    assert "Mostly noise." not in report_html(report)

"""Floors, drops, and the reports that they are held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nearfar.errors import DataFileError, InputError, UnknownNameError
from nearfar.eval.report import Report, write_report
from nearfar.eval.report.gates import below_floor, dropped, load_report, parse_floor


def test_a_report_is_read_back(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    found = load_report(tmp_path / "report.json")
    assert found.means == {model.name: model.ranking.mean for model in report.models}
    assert found.queries == set(report.models[0].ranking.query_ids)
    assert found.means_for("before") == report.models[0].ranking.mean
    assert found.means_for("a name of today") == report.models[1].ranking.mean


def test_means_that_are_not_finite_are_no_baseline(report: Report, tmp_path: Path) -> None:
    ranking = report.models[0].ranking
    holed = replace(
        ranking, mean={**ranking.mean, "R@1": float("nan")}, per_query={**ranking.per_query, "R@1": np.full(40, np.nan)}
    )
    one = replace(report, models=[replace(report.models[0], ranking=holed)], primary_metric="RR@10")
    write_report(one, tmp_path)
    assert "R@1" not in load_report(tmp_path / "report.json").means_for("before")


@pytest.mark.parametrize("text", ["nDCG@10", "=0.4", "nDCG@10=", "nDCG@10=high", "nDCG@10=nan", ""])
def test_floors_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="not of the form METRIC=NUMBER"):
        parse_floor(text)


def test_a_floor_of_an_unknown_metric() -> None:
    with pytest.raises(UnknownNameError):
        parse_floor("nDGC@10=0.4")


def test_a_value_equal_to_its_floor_passes_whatever_the_rounding() -> None:
    assert below_floor({"R@1": 0.1 + 0.2 - 1e-16}, [("R@1", 0.3)]) == []
    assert dropped({"R@1": 0.29}, {"R@1": 0.3}, 0.01) == []
    assert len(dropped({"R@1": 0.2899}, {"R@1": 0.3}, 0.01)) == 1


def test_rises_never_fail() -> None:
    assert dropped({"R@1": 0.9}, {"R@1": 0.1}, 0.0) == []


def test_only_the_named_metrics_count() -> None:
    before, now = {"R@1": 0.5, "RR": 0.5}, {"R@1": 0.1, "RR": 0.5}
    assert dropped(now, before, 0.01, ["RR"]) == []
    with pytest.raises(UnknownNameError, match="metric of the baseline"):
        dropped({**now, "AP": 0.5}, before, 0.01, ["AP"])
    with pytest.raises(InputError, match="none of the metrics"):
        dropped({"AP": 0.5}, before, 0.01)
    with pytest.raises(InputError, match="--max-drop is"):
        dropped(now, before, -0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a report"),
        ('{"format": "other"}', "is not a report"),
        (json.dumps({"format": "nearfar-report", "models": []}), "damaged"),
        (json.dumps({"format": "nearfar-report", "models": [{"name": "a"}]}), "damaged"),
    ],
)
def test_files_that_are_no_report(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataFileError, match=message):
        load_report(tmp_path / "report.json")
    with pytest.raises(DataFileError, match="cannot be read"):
        load_report(tmp_path / "nowhere.json")

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.eval.report import Report, write_report
from nearfar.eval.report.markdown import report_markdown
from nearfar.eval.report.serialize import report_json
from tests.eval.report.report_samples import make_card, make_section


def strict(text: str) -> Any:
    """Parses JSON and refuses NaN and Infinity, which Python's reader lets pass."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_three_files(report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_equals_the_inputs(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    content = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["format"] == "nearfar-report"
    for name in ("title", "dataset", "primary_metric", "acknowledgement", "recipe", "versions", "created"):
        assert content[name] == getattr(report, name)
    for section, model in zip(content["models"], report.models, strict=True):
        assert section["ranking"]["query_ids"] == model.ranking.query_ids
        assert section["ranking"]["mean"] == model.ranking.mean
        for name, values in model.ranking.per_query.items():
            np.testing.assert_array_equal(section["ranking"]["per_query"][name], values)
        assert {int(k): v for k, v in section["recall_curve"].items()} == model.recall_curve
        for part in ("opis", "histogram"):
            given = getattr(model, part)
            for field in fields(given):
                np.testing.assert_array_equal(section[part][field.name], getattr(given, field.name))
        first = section["worst_queries"][0]
        assert first["text"] == model.worst_queries[0].text
        assert first["returned"][0]["score"] == model.worst_queries[0].returned[0].score
    assert content["verdict"]["headline"].startswith("R@1 on 40 queries")
    assert {c["metric"] for c in content["comparisons"]} == set(report.models[0].ranking.mean)
    assert [len(wins["wins"]) + len(wins["losses"]) + wins["ties"] for wins in content["comparisons"]] == [40] * 3


def test_json_holds_the_answers_once_and_whole(report: Report) -> None:
    long = replace(report.models[0].answers[0], text="word " * 500)
    models = [replace(report.models[0], answers=[long]), replace(report.models[1], threshold_card=make_card())]
    content = strict(report_json(replace(report, models=models)))
    assert [model["answers"] for model in content["models"]] == [[], []]
    found = {query[0]: query for query in content["explorer"]["queries"]}
    assert len(found) == 40
    assert found[long.query_id][1] == long.text.strip()
    ids = [document[0] for document in content["explorer"]["documents"]]
    assert len(ids) == len(set(ids))
    example = report.models[1].answers[3]
    returned = found[example.query_id][5][1]
    assert [ids[at] for at, _, _ in returned] == [document.id for document in example.returned]
    assert content["models"][1]["threshold_card"]["threshold"] == 0.512
    assert content["models"][0]["curves"]["eer"] == report.models[0].curves.eer  # type: ignore[union-attr]


def test_json_has_no_nan(report: Report) -> None:
    ranking = report.models[0].ranking
    holed = replace(
        ranking,
        mean={**ranking.mean, "R@10": float("nan")},
        per_query={**ranking.per_query, "R@10": np.full(40, np.inf)},
    )
    recipe = {"rate": np.float32(0.5), "path": Path("a"), "none": None, "bad": float("nan"), "set": {2, 1}}
    changed = replace(report, models=[replace(report.models[0], ranking=holed)], recipe=recipe)
    content = strict(report_json(changed))
    assert content["models"][0]["ranking"]["mean"]["R@10"] is None
    assert content["models"][0]["ranking"]["per_query"]["R@10"] == [None] * 40
    assert content["recipe"] == {"rate": 0.5, "path": "a", "none": None, "bad": None, "set": [1, 2]}


def test_missing_parts_are_null(report: Report) -> None:
    bare = replace(report.models[0], opis=None, histogram=None, recall_curve={}, worst_queries=[], curves=None)
    section = strict(report_json(replace(report, models=[bare])))["models"][0]
    assert (section["opis"], section["histogram"]) == (None, None)
    assert (section["recall_curve"], section["worst_queries"]) == ({}, [])


def rows_below(markdown: str, heading: str) -> list[list[str]]:
    lines = markdown.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_markdown_tables_hold_the_values(report: Report) -> None:
    text = report_markdown(report)
    before, after = report.models
    header, rule, *rows = rows_below(text, "Metrics")
    assert header == ["Metric", "before", "after", "Difference (95 % interval)"]
    assert rule == [":---", "---:", "---:", "---:"]
    for row in rows:
        means = [f"{m.ranking.mean[row[0]]:.3f}" for m in (before, after)]
        assert row[1:3] == means
    _, _, *recall = rows_below(text, "Recall@K")
    assert [row[0] for row in recall] == ["1", "5", "10", "20"]
    assert [row[2] for row in recall] == [f"{after.recall_curve[k]:.3f}" for k in (1, 5, 10, 20)]
    assert before.opis is not None
    opis = {row[0]: row[1:] for row in rows_below(text, "Threshold consistency (OPIS)")}
    assert float(opis["OPIS"][0]) == pytest.approx(before.opis.opis, rel=0.01)
    assert "Thanks to the makers of the data." in text


def test_markdown_escapes(report: Report) -> None:
    nasty = "a | b\n# <script>alert(1)</script> [x](y) `code` *stars* _lines_ \\"
    example = replace(report.models[0].worst_queries[0], text=nasty)
    model = replace(report.models[0], name=nasty, worst_queries=[example])
    text = report_markdown(replace(report, title=nasty, models=[model], notes=[nasty], recipe={nasty: nasty}))
    assert "<script" not in text
    assert r"a \| b \# &lt;script&gt;alert(1)&lt;/script&gt; \[x\](y) \`code\` \*stars\* \_lines\_ \\" in text
    width = {len(row) for row in rows_below(text, "Recipe")}
    assert width == {2}


def test_markdown_of_a_bare_model(report: Report) -> None:
    bare = replace(report.models[0], opis=None, histogram=None, recall_curve={}, worst_queries=[], curves=None)
    text = report_markdown(replace(report, models=[bare], recipe={}, versions={}, acknowledgement=""))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Metrics"]


def test_lone_surrogates_do_not_break_the_writing(report: Report, tmp_path: Path) -> None:
    path = write_report(replace(report, title="broken \ud800 text"), tmp_path)
    assert "broken ? text" in path.read_text(encoding="utf-8")
    strict((tmp_path / "report.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_failed_write_leaves_the_old_report(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    write_report(report, tmp_path)
    old = contents(tmp_path)
    calls = 0

    def full_disk(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(replace(report, title="A second"), tmp_path)
    assert contents(tmp_path) == old


def test_a_failed_replacement_leaves_no_half_file(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path)
    old = contents(tmp_path)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write_report(replace(report, title="A second"), tmp_path)
    assert contents(tmp_path) == old


def test_a_report_that_cannot_be_rendered_touches_nothing(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(report: Report) -> str:
        raise RuntimeError("no template")

    monkeypatch.setattr("nearfar.eval.report.write.report_html", fail)
    with pytest.raises(RuntimeError, match="no template"):
        write_report(report, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_second_report_replaces_the_first(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    write_report(replace(report, title="A second"), tmp_path)
    assert "A second" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_in_the_place_of_the_folder(report: Report, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="is a file; a report needs a folder"):
        write_report(report, tmp_path / "taken")


def test_the_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "one")
    write_report(replace(report, models=[make_section("before", 1), make_section("after", 2)]), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

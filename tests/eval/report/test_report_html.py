from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from nearfar.eval import compare_runs
from nearfar.eval.report import ExpectedDocument, FrontierPoint, ModelSection, QueryExample, Report, ReturnedDocument
from nearfar.eval.report.charts import MAX_CLASS_LINES, drawn_classes
from nearfar.eval.report.html import report_html
from nearfar.eval.report.html_json import script_json
from tests.eval.report.report_samples import (
    make_card,
    make_curves,
    make_frontier,
    make_histogram,
    make_opis,
    make_ranking,
    make_section,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}--><!--"


class Page(HTMLParser):
    """Tags with their attributes, the visible text, the scripts and the tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.data: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "link", "img", "input"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"th", "td"}:
            self.tables[-1][-1].append("")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "script":
            self.into = dict(attrs).get("id")
            if self.into is None:
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        if "script" in self.open and self.into is not None:
            self.data[self.into] = self.data.get(self.into, "") + data
            return
        if "script" in self.open:
            self.scripts[-1] += data
            return
        self.texts.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if self.headings and f"h{self.headings[-1][0]}" in self.open:
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def charts(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.data["charts"])
        return loaded


def test_the_page_is_one_file_that_loads_nothing(report: Report) -> None:
    text = report_html(report)
    page = Page(text)
    loading = {"src", "srcset", "data", "action", "background", "poster"}
    for tag, attributes in page.tags:
        assert not loading & set(attributes), f"{tag} loads something"
        if "href" in attributes:
            assert (attributes["href"] or "").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert sum(script.startswith("/**\n* plotly.js") for script in page.scripts) == 1


def test_the_policy_admits_exactly_the_scripts_of_the_page(report: Report) -> None:
    page = Page(report_html(report))
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a)
    admitted = set(re.findall(r"'sha256-([^']+)'", policy))
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts} == admitted
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert all(attributes.get("type") in {None, "application/json"} for t, attributes in page.tags if t == "script")


def test_headings_form_an_outline(report: Report) -> None:
    headings = Page(report_html(report)).headings
    assert headings[0] == (1, "A first comparison")
    assert [level for level, _ in headings].count(1) == 1
    for (above, _), (below, text) in itertools.pairwise(headings):
        assert below <= above + 1, f"{text} skips a level"
    second = [text for level, text in headings if level == 2]
    assert second == [
        "Verdict",
        "Metrics",
        "Scores of pairs",
        "Error rates of pairs",
        "One threshold for every class?",
        "Every query",
        "Worst queries",
        "Provenance",
    ]


def test_links_lead_somewhere_and_ids_are_unique(report: Report) -> None:
    page = Page(report_html(report))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if "href" in attributes:
            assert (attributes["href"] or "")[1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_every_chart_has_words_a_table_and_a_specification(report: Report) -> None:
    page = Page(report_html(report))
    charts = {a["id"]: a for t, a in page.tags if t == "div" and a.get("class") == "chart"}
    assert set(charts) == set(page.charts())
    assert set(charts) == {"recall", "scores-0", "scores-1", "roc", "det", "classes-0", "classes-1"}
    for attributes in charts.values():
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 20
    assert [t for t, _ in page.tags].count("figure") == len(charts)


def test_metrics_table_holds_the_values(report: Report) -> None:
    before, after = report.models
    rows = Page(report_html(report)).tables[0]
    assert rows[0] == ["Metric", "before", "after", "Difference (95\u00a0% interval)"]
    expected = {row.metric: row for row in compare_runs({m.name: m.ranking for m in report.models}).rows}
    for name, old, new, difference in rows[1:]:
        assert old == f"{before.ranking.mean[name]:.3f}"
        assert new == f"{after.ranking.mean[name]:.3f}"
        told = [float(number) for number in re.findall(r"[-+]?\d\.\d+", difference.replace("\u2212", "-"))]
        row = expected[name]
        assert told == pytest.approx([row.difference, row.low, row.high], abs=6e-4)
        assert difference.endswith("★") == row.significant
    assert {row[0] for row in rows[1:]} == set(before.ranking.mean)


def test_charts_hold_the_values(report: Report) -> None:
    charts = Page(report_html(report)).charts()
    after = report.models[1]
    assert after.opis is not None
    assert after.histogram is not None
    curve = charts["recall"]["data"][1]
    assert dict(zip(curve["x"], curve["y"], strict=True)) == pytest.approx(dict(after.recall_curve), abs=1e-5)
    negative, positive = charts["scores-1"]["data"]
    np.testing.assert_allclose(positive["y"][:-1], after.histogram.positive, atol=1e-5)
    np.testing.assert_allclose(negative["y"][:-1], after.histogram.negative, atol=1e-5)
    mean = charts["classes-1"]["data"][-1]
    np.testing.assert_allclose(mean["y"], after.opis.mean_utility, atol=1e-5)
    band = charts["classes-1"]["data"][:4]
    expected = np.percentile(after.opis.utilities, [0, 100, 10, 90], axis=0)
    np.testing.assert_allclose([trace["y"] for trace in band], expected, atol=1e-5)


def test_the_page_says_what_it_must(report: Report) -> None:
    text = Page(report_html(report)).text
    for phrase in (
        "Thanks to the makers of the data.",
        "A remark.",
        "9 January 2026, 07:05 UTC",
        "loss.m",
        "noise floor",
        "of unseen terms",
        "All 12 classes drawn as lines.",
        "question q",
    ):
        assert phrase in text


def test_worst_classes_are_named(report: Report) -> None:
    page = Page(report_html(report))
    opis = report.models[1].opis
    assert opis is not None
    worst = min(range(12), key=lambda row: sum(opis.utilities[row]))
    tables = [t for t in page.tables if t[0][0] == "Class"]
    assert tables[1][1][0] == f"class {worst}"
    assert tables[1][1][1] == str(opis.class_sizes[worst])


def test_lines_are_thinned_and_the_page_says_so(report: Report) -> None:
    opis = make_opis(classes=500)
    rows = drawn_classes(opis)
    means = opis.utilities.mean(axis=1)
    assert len(rows) == MAX_CLASS_LINES
    assert means[rows[0]] == means.min()
    assert means[rows[-1]] == means.max()
    page = Page(report_html(replace(report, models=[replace(report.models[0], opis=opis)])))
    assert "60 of 500 classes drawn as lines" in page.text
    lines = page.charts()["classes-0"]["data"][4]
    assert lines["y"].count(None) == MAX_CLASS_LINES


def hostile_report() -> Report:
    example = QueryExample(
        HOSTILE,
        HOSTILE,
        0.5,
        "R@1",
        [ExpectedDocument(HOSTILE, HOSTILE, 1, None)],
        1,
        [ReturnedDocument(HOSTILE, HOSTILE, 0.5, 1, 1, True)],
        1,
    )
    card = make_card(prefix=HOSTILE).model_copy(update={"promise": HOSTILE, "assumptions": (HOSTILE,)})
    ranking = make_ranking(np.array([1, 2]), [HOSTILE, "q"])
    per_query = {**ranking.per_query, HOSTILE: np.array([0.0, 1.0])}
    ranking = replace(ranking, per_query=per_query, mean={**ranking.mean, HOSTILE: 0.5})
    opis = make_opis(prefix=HOSTILE)
    models = [
        ModelSection(
            name,
            ranking,
            {1: 0.5},
            opis,
            make_histogram(),
            [example],
            [example],
            make_curves(),
            card,
            [FrontierPoint(HOSTILE, 0.5, 1.0)],
        )
        for name in (HOSTILE, f"{HOSTILE} again")
    ]
    return Report(
        title=HOSTILE,
        dataset=HOSTILE,
        models=models,
        primary_metric=HOSTILE,
        acknowledgement=HOSTILE,
        recipe={HOSTILE: {HOSTILE: [HOSTILE]}},
        versions={HOSTILE: HOSTILE},
        created=HOSTILE,
        notes=[HOSTILE],
    )


def test_hostile_texts_are_inert() -> None:
    text = report_html(hostile_report())
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 4
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in "".join(page.texts)  # shown letter by letter, not evaluated
    outside = text.replace(page.scripts[0], "")
    assert json.loads(page.data["answers"])["documents"][0][0] == HOSTILE
    assert "<script>alert" not in outside
    assert "<img" not in outside


def test_embedded_json_cannot_end_its_script() -> None:
    value = {HOSTILE: [HOSTILE, 0.5, None]}
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_charts_show_hostile_names_letter_by_letter() -> None:
    charts = Page(report_html(hostile_report())).charts()
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(charts))
    shown = [s for s in strings if "alert" in s]
    assert shown
    assert not any("<script" in s or "<img" in s for s in shown)


def test_one_model(report: Report) -> None:
    page = Page(report_html(replace(report, models=report.models[:1])))
    assert page.tables[0][0] == ["Metric", "before", "95\u00a0% interval"]
    assert "Differences are from" not in page.text


def test_four_models(report: Report) -> None:
    models = [make_section(name, seed) for seed, name in enumerate("abcd")]
    page = Page(report_html(replace(report, models=models)))
    assert page.tables[0][0] == [
        "Metric",
        "a",
        *(h for name in "bcd" for h in (name, "Difference (95\u00a0% interval)")),
    ]
    assert len(page.charts()["recall"]["data"]) == 4


def test_sections_without_content_are_left_out(report: Report) -> None:
    bare = [ModelSection(model.name, model.ranking) for model in report.models]
    page = Page(report_html(Report("t", "d", bare, "R@1", versions={})))
    assert [text for level, text in page.headings if level == 2] == ["Verdict", "Metrics", "Provenance"]
    assert page.charts() == {}
    assert len(page.scripts) == 1  # no charts, no Plotly
    assert page.data["answers"] == "null"


def test_parts_missing_from_one_model_only(report: Report) -> None:
    models = [
        replace(
            report.models[0], opis=None, histogram=None, recall_curve={}, worst_queries=[], curves=None, answers=[]
        ),
        report.models[1],
    ]
    page = Page(report_html(replace(report, models=models)))
    assert set(page.charts()) == {"recall", "scores-1", "roc", "det", "classes-1"}
    assert len(page.charts()["roc"]["data"]) == 2  # a line and its operating points
    assert ["Quantity", "after"] in [table[0] for table in page.tables]


def test_long_texts_are_cut_on_the_page(report: Report) -> None:
    example = report.models[0].worst_queries[0]
    endless = replace(example, text="word " * 5000, returned=[replace(example.returned[0], text="x" * 50_000)])
    model = replace(report.models[0], worst_queries=[endless], answers=[endless])
    short = report_html(replace(report, models=[replace(model, worst_queries=[example], answers=[example])]))
    assert len(report_html(replace(report, models=[model]))) < len(short) + 3000


def test_rates_hold_the_values(report: Report) -> None:
    page = Page(report_html(report))
    curves = report.models[1].curves
    assert curves is not None
    line, marks = page.charts()["roc"]["data"][2:]
    shown = curves.far >= 1e-5
    np.testing.assert_allclose(line["x"], curves.far[shown], rtol=1e-3)
    np.testing.assert_allclose(line["y"], 1 - curves.frr[shown], atol=1e-5)
    assert marks["x"][0] == pytest.approx(curves.operating_points[0].far, rel=1e-3)
    det = page.charts()["det"]["data"][2]
    normal = NormalDist()
    for x, y, (far, frr, _) in zip(det["x"], det["y"], det["customdata"], strict=True):
        assert (normal.cdf(x), normal.cdf(y)) == pytest.approx((far, frr), rel=2e-2)
    (table,) = [t for t in page.tables if t[1][0].startswith("Equal error rate")]
    assert float(table[1][2].split("\u00a0")[0]) == pytest.approx(100 * curves.eer, rel=0.05)


def test_a_card_is_drawn_and_its_failures_named(report: Report) -> None:
    models = [report.models[0], replace(report.models[1], threshold_card=make_card(0.512))]
    page = Page(report_html(replace(report, models=models)))
    line = page.charts()["scores-1"]["data"][2]
    assert line["x"] == [0.512, 0.512]
    assert len(page.charts()["scores-0"]["data"]) == 2
    assert page.charts()["classes-1"]["data"][0]["x"] == [0.512, 0.512]
    (failing,) = [t for t in page.tables if t[0] == ["Class", "Own rate"]]
    assert [row[0] for row in failing[1:]] == [f"class {i}" for i in range(10)]
    assert "the worst 10 of 12" in page.text
    assert "Nothing drifts." in page.text


def test_a_threshold_beyond_all_scores_is_within_the_chart(report: Report) -> None:
    models = [replace(report.models[0], threshold_card=make_card(0.999))]
    chart = Page(report_html(replace(report, models=models))).charts()["scores-0"]
    assert chart["layout"]["xaxis"]["range"][1] > 0.999


def test_a_frontier_is_shown_when_given(report: Report) -> None:
    models = [report.models[0], replace(report.models[1], frontier=make_frontier())]
    page = Page(report_html(replace(report, models=models)))
    (line,) = page.charts()["frontier"]["data"]
    assert (line["x"], line["text"]) == ([0.02, 0.08, 0.32], ["nprobe=1", "nprobe=4", "nprobe=16"])
    assert line["error_y"]["array"] == [0.05, 0.0125, 0.00313]
    assert line["error_y"]["arrayminus"] == [0.1, 0.025, 0.00625]
    assert ["after", "nprobe=4", "0.900", "0.875 to 0.912", "0.08", "0.12"] in next(
        t for t in page.tables if t[0][0] == "Model" and "Setting" in t[0]
    )


@pytest.mark.parametrize("queries", [1000, 4343])
def test_a_large_report_stays_small(queries: int) -> None:
    """Long texts, all of them different, and four models: nothing here compresses."""
    models = []
    for seed, name in enumerate(("before", "after", "third", "fourth")):
        section = make_section(name, seed, queries=queries, worst=20, text=f"{name} {'médecine générale ' * 40}")
        models.append(replace(section, opis=make_opis(classes=2000, steps=101, seed=seed)))
    page = report_html(Report("t", "d", models, "R@1"))
    assert len(page.encode()) < 8e6
    assert re.search(r"texts end after \d+ characters", page)

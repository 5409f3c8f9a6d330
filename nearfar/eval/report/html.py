"""The report as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from nearfar.eval.report import charts, rate_charts
from nearfar.eval.report.comparison import contrast, verdict
from nearfar.eval.report.explorer import explorer
from nearfar.eval.report.formatting import NONE, STAR, count, metric, moment, percent, quoted, shorten, small
from nearfar.eval.report.html_json import script_json
from nearfar.eval.report.model import ModelSection, QueryExample, Report
from nearfar.eval.report.tables import (
    Table,
    calibration_range,
    card_table,
    curve_table,
    failing_table,
    frontier_table,
    metrics_table,
    opis_table,
    opis_warnings,
    pairs_table,
    rates_table,
    recall_table,
    scores_table,
    settings_table,
    tests_table,
    worst_classes_table,
)
from nearfar.eval.thresholds.card import ThresholdCard


@dataclass(frozen=True)
class Figure:
    """A chart with its words: a caption, a description, and the table that says the same, unless one does for many."""

    id: str
    caption: str
    description: str
    chart: charts.Chart
    table: Table | None = None
    extra: Table | None = None
    note: str = ""


def report_html(report: Report) -> str:
    """Renders the page: text, tables, charts, and the script that draws them, all in one.

    A content security policy admits the page's own two scripts by their hashes and nothing else, so that no
    text of the user can run even if it were to slip through escaping.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nearfar.eval.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(metric=metric, count=count, shorten=shorten, small=small, moment=moment, quoted=quoted)
    figures = _figures(report)
    plotly, page = get_plotlyjs(), _packaged("page.js") + _packaged("explorer.js")
    queries = explorer(report)
    specifications = {figure.id: figure.chart for group in figures.values() for figure in group}
    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=verdict(report),
        key_figures=_key_figures(report),
        metrics=metrics_table(report),
        tests=tests_table(report),
        star=STAR,
        rates=rates_table(report),
        cards=_cards(report),
        opis=opis_table(report),
        opis_warnings=opis_warnings(report),
        pairs=pairs_table(report),
        example=_opis_example(report),
        figures=figures,
        settings=settings_table("Recipe", report.recipe),
        versions=settings_table("Versions", report.versions),
        worst=_worst(report),
        style=_trusted(_packaged("report.css")),
        plotly=_trusted(plotly if specifications else ""),
        page=_trusted(page),
        specifications=_trusted(script_json(specifications)),
        explorer=queries,
        answers=_trusted(script_json(queries.content if queries else None)),
        script_hashes=" ".join(_hash(script) for script in (plotly, page)),
    )


def _figures(report: Report) -> dict[str, list[Figure]]:
    return {
        "recall": _recall(report),
        "scores": _scores(report),
        "rates": _rates(report),
        "classes": _classes(report),
        "frontier": _frontier(report),
    }


def _recall(report: Report) -> list[Figure]:
    table = recall_table(report)
    if table is None:
        return []
    return [Figure("recall", "Recall@K", charts.describe_recall(report), charts.recall_chart(report), table)]


def _rates(report: Report) -> list[Figure]:
    """ROC and DET curves of all models."""
    table = rates_table(report)
    if table is None:
        return []
    told = rate_charts.describe_rates(report)
    return [
        Figure("roc", "ROC: true accepts over false accepts", told, rate_charts.roc_chart(report)),
        Figure("det", "DET: false rejects over false accepts", told, rate_charts.det_chart(report)),
    ]


def _frontier(report: Report) -> list[Figure]:
    table = frontier_table(report)
    if table is None:
        return []
    told = rate_charts.describe_frontier(report)
    return [Figure("frontier", "Recall and latency", told, rate_charts.frontier_chart(report), table)]


def _cards(report: Report) -> list[tuple[str, ThresholdCard, Table, Table | None]]:
    cards = [(model.name, model.threshold_card) for model in report.models]
    return [(name, card, card_table(card), failing_table(card)) for name, card in cards if card is not None]


def _threshold(model: ModelSection) -> float | None:
    return None if model.threshold_card is None else model.threshold_card.threshold


def _scores(report: Report) -> list[Figure]:
    """A histogram a model, all on the same axes."""
    measured = [(i, m, m.histogram) for i, m in enumerate(report.models) if m.histogram is not None]
    if not measured:
        return []
    lows, highs, tops = [], [], []
    for _, model, histogram in measured:
        occupied = np.flatnonzero(histogram.positive + histogram.negative)
        first, last = (occupied[0], occupied[-1] + 1) if len(occupied) else (0, len(histogram.positive))
        lows.append(float(histogram.edges[first]))
        highs.append(float(histogram.edges[last]))
        if (threshold := _threshold(model)) is not None:
            lows.append(threshold - 0.02)
            highs.append(threshold + 0.02)
        tops.append(float(max(histogram.positive.max(), histogram.negative.max())))
    ends, top = (min(lows), max(highs)), 1.05 * max(tops) or 1.0
    return [
        Figure(
            id=f"scores-{i}",
            caption=model.name,
            description=charts.describe_scores(histogram, _threshold(model)),
            chart=charts.score_chart(histogram, ends, top, _threshold(model)),
            table=scores_table(histogram),
        )
        for i, model, histogram in measured
    ]


def _classes(report: Report) -> list[Figure]:
    """Threshold curves a model, all on the same utility axis."""
    measured = [(i, m, m.opis) for i, m in enumerate(report.models) if m.opis is not None and len(m.opis.utilities)]
    if not measured:
        return []
    bottom = min(float(opis.utilities.min()) for _, _, opis in measured)
    figures = []
    for i, model, opis in measured:
        drawn, total = len(charts.drawn_classes(opis)), len(opis.class_labels)
        note = (
            f"{drawn} of {count(total)} classes drawn as lines, evenly from the worst to the best; "
            "bands and mean take in all of them."
            if drawn < total
            else f"All {count(total)} classes drawn as lines."
        )
        figures.append(
            Figure(
                id=f"classes-{i}",
                caption=model.name,
                description=charts.describe_classes(opis),
                chart=charts.class_chart(opis, max(0.0, bottom - 0.02), _threshold(model)),
                table=curve_table(opis),
                extra=worst_classes_table(opis),
                note=note,
            )
        )
    return figures


def _key_figures(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and the other model's value of the few numbers at the head of the page."""
    best, against = contrast(report)
    other = against.ranking.mean if against else {}
    names = list(dict.fromkeys([report.primary_metric, *best.ranking.mean]))[:3]
    figures = [(name, metric(best.ranking.mean[name]), metric(other.get(name))) for name in names]
    if best.opis is not None:
        was = small(against.opis.corrected) if against and against.opis else NONE
        figures.append(("Corrected OPIS", small(best.opis.corrected), was))
    return [(name, value, f"{against.name} {was}" if against else "") for name, value, was in figures]


def _opis_example(report: Report) -> dict[str, str] | None:
    """The last measured OPIS in words, so that the reader learns to read the table."""
    for model in reversed(report.models):
        if model.opis is not None:
            return {
                "name": model.name,
                "opis": small(model.opis.opis),
                "floor": small(model.opis.noise_floor),
                "low": small(model.opis.interval[0]),
                "high": small(model.opis.interval[1]),
                "corrected": small(model.opis.corrected),
                "spread": f"±{metric(model.opis.corrected**0.5)}",
                "mean": metric(float(model.opis.mean_utility.mean())),
                "range": calibration_range(model.opis),
                "epsilon": percent(model.opis.epsilon),
            }
    return None


def _worst(report: Report) -> list[tuple[ModelSection, list[tuple[QueryExample, str]]]]:
    """Models with examples, the last model first; beside each query, its value with the other models."""
    shown = []
    for model in reversed(report.models):
        if model.worst_queries:
            shown.append((model, [(example, _elsewhere(report, model, example)) for example in model.worst_queries]))
    return shown


def _elsewhere(report: Report, model: ModelSection, example: QueryExample) -> str:
    told = []
    for other in report.models:
        values = other.ranking.per_query.get(example.metric)
        if other is not model and values is not None and example.query_id in other.ranking.query_ids:
            told.append(
                f"{metric(float(values[other.ranking.query_ids.index(example.query_id)]))} with {quoted(other.name)}"
            )
    return ", ".join(told)


def _packaged(name: str) -> str:
    return (resources.files("nearfar.eval.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _trusted(text: str) -> Any:
    """Marks a text of this package or of Plotly, or escaped JSON, as safe to embed as it is."""
    import markupsafe

    return markupsafe.Markup(text)  # noqa: S704 - never a text of the user; see the callers

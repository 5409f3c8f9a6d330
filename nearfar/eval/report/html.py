"""The report as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from nearfar.eval.report import charts
from nearfar.eval.report.comparison import contrast, verdict
from nearfar.eval.report.formatting import NONE, count, metric, moment, percent, quoted, shorten, small
from nearfar.eval.report.model import ModelSection, QueryExample, Report
from nearfar.eval.report.tables import (
    Table,
    calibration_range,
    curve_table,
    metrics_table,
    opis_table,
    pairs_table,
    recall_table,
    scores_table,
    settings_table,
    worst_classes_table,
)


@dataclass(frozen=True)
class Figure:
    """A chart with its words: a caption, a description, and the table that says the same."""

    id: str
    caption: str
    description: str
    chart: charts.Chart
    table: Table
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
    plotly, page = get_plotlyjs(), _packaged("page.js")
    specifications = {figure.id: figure.chart for group in figures.values() for figure in group}
    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=verdict(report),
        key_figures=_key_figures(report),
        metrics=metrics_table(report),
        opis=opis_table(report),
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
        script_hashes=" ".join(_hash(script) for script in (plotly, page)),
    )


def script_json(value: Any) -> str:
    r"""JSON that cannot end the script element that holds it.

    Example:
        >>> script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figures(report: Report) -> dict[str, list[Figure]]:
    return {"recall": _recall(report), "scores": _scores(report), "classes": _classes(report)}


def _recall(report: Report) -> list[Figure]:
    table = recall_table(report)
    if table is None:
        return []
    return [Figure("recall", "Recall@K", charts.describe_recall(report), charts.recall_chart(report), table)]


def _scores(report: Report) -> list[Figure]:
    """A histogram a model, all on the same axes."""
    measured = [(i, m.name, m.histogram) for i, m in enumerate(report.models) if m.histogram is not None]
    if not measured:
        return []
    lows, highs, tops = [], [], []
    for _, _, histogram in measured:
        occupied = np.flatnonzero(histogram.positive + histogram.negative)
        first, last = (occupied[0], occupied[-1] + 1) if len(occupied) else (0, len(histogram.positive))
        lows.append(float(histogram.edges[first]))
        highs.append(float(histogram.edges[last]))
        tops.append(float(max(histogram.positive.max(), histogram.negative.max())))
    ends, top = (min(lows), max(highs)), 1.05 * max(tops) or 1.0
    return [
        Figure(
            id=f"scores-{i}",
            caption=name,
            description=charts.describe_scores(histogram),
            chart=charts.score_chart(histogram, ends, top),
            table=scores_table(histogram),
        )
        for i, name, histogram in measured
    ]


def _classes(report: Report) -> list[Figure]:
    """Threshold curves a model, all on the same utility axis."""
    measured = [
        (i, m.name, m.opis) for i, m in enumerate(report.models) if m.opis is not None and len(m.opis.utilities)
    ]
    if not measured:
        return []
    bottom = min(float(opis.utilities.min()) for _, _, opis in measured)
    figures = []
    for i, name, opis in measured:
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
                caption=name,
                description=charts.describe_classes(opis),
                chart=charts.class_chart(opis, max(0.0, bottom - 0.02)),
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

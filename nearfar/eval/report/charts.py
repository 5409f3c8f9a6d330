"""The charts as plain Plotly specifications, coloured by the names of the page's own colours.

A colour is written `@name` or `@name/opacity` and looked up in the style sheet when the page draws the chart,
so that one specification serves the light and the dark theme. Texts of the user pass through `label`: Plotly
reads a subset of HTML in every string.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfar.eval.report.formatting import count, metric
from nearfar.eval.report.model import Report
from nearfar.eval.report.tables import bands, calibration_range, worst_classes
from nearfar.eval.thresholds.histograms import ScoreHistogram
from nearfar.eval.thresholds.opis import OPISResult

# More lines than this hide one another; the bands still speak for every class.
MAX_CLASS_LINES = 60
# Series of four models; a fifth starts over with another dash.
_SERIES = ("series1", "series2", "series3", "series4")
_SYMBOLS = ("circle-open", "circle", "square", "diamond")
_DASHES = ("solid", "dash", "dot")
_DIGITS = 5

Chart = dict[str, Any]
Numbers = list[float | None]


def recall_chart(report: Report) -> Chart:
    """Recall@K of every model over a logarithmic K."""
    traces = []
    for i, model in enumerate(report.models):
        cutoffs = sorted(model.recall_curve)
        traces.append(
            series(i, model.name, cutoffs, [model.recall_curve[k] for k in cutoffs], markers=True)
            | {"hovertemplate": "Recall@%{x}: %{y:.3f}<extra>%{fullData.name}</extra>"}
        )
    ticks = sorted({k for model in report.models for k in model.recall_curve})
    shown = _spaced(ticks)
    x = axis("K, documents returned (logarithmic)", type="log", tickvals=shown, ticktext=[f"{k:,}" for k in shown])
    y = axis("Recall@K", range=[0, 1.02], tickformat=".1f")
    return {"data": traces, "layout": layout(x, y, showlegend=len(report.models) > 1)}


def series(place: int, name: str, x: Any, y: Any, markers: bool) -> Chart:
    """A model's line, in the colour and dash of its place in the report."""
    colour = f"@{_SERIES[place % 4]}"
    line = {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "name": label(_clip(name)),
        "x": numbers(x),
        "y": numbers(y),
        "line": {"color": colour, "width": 2.5, "dash": _DASHES[place // 4 % 3]},
    }
    if not markers:
        return line
    marker = {"color": colour, "size": 8, "symbol": _SYMBOLS[place % 4], "line": {"color": colour, "width": 2}}
    return line | {"marker": marker}


def score_chart(
    histogram: ScoreHistogram, x_range: Sequence[float], top: float, threshold: float | None = None
) -> Chart:
    """Densities of the positive and the negative pairs' cosines as filled steps, with a threshold if there is one."""
    traces = []
    for name, density, colour, dash in (
        ("negative pairs", histogram.negative, "negative", "dot"),
        ("positive pairs", histogram.positive, "positive", "solid"),
    ):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": numbers(histogram.edges),
                "y": numbers(np.append(density, density[-1:])),
                "line": {"color": f"@{colour}", "width": 2, "shape": "hv", "dash": dash},
                "fill": "tozeroy",
                "fillcolor": f"@{colour}/0.18",
                "hovertemplate": "cosine %{x:.2f}: density %{y:.2f}<extra>%{fullData.name}</extra>",
            }
        )
    if threshold is not None:
        traces.append(_upright(threshold, [0, top]))
    x = axis("Cosine of the pair", range=list(x_range))
    return {"data": traces, "layout": layout(x, axis("Density", range=[0, top]), showlegend=False)}


def class_chart(opis: OPISResult, bottom: float, threshold: float | None = None) -> Chart:
    """Utility of the classes by threshold: single classes, their band, their mean, and the worst ones.

    A given threshold is drawn where it lies within the calibration range.
    """
    x = numbers(opis.similarities)
    low, tenth, ninetieth, high = bands(opis)
    traces = [
        _edge(x, low),
        _edge(x, high) | {"fill": "tonexty", "fillcolor": "@band/0.10"},
        _edge(x, tenth),
        _edge(x, ninetieth) | {"fill": "tonexty", "fillcolor": "@band/0.26"},
        _single_classes(opis, x),
        *(_worst_class(opis, x, row, dash) for row, dash in zip(worst_classes(opis), _DASHES, strict=False)),
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": numbers(opis.mean_utility),
            "line": {"color": "@band", "width": 3},
            "hovertemplate": "cosine %{x:.3f}: %{y:.3f}<extra>mean of the classes</extra>",
        },
    ]
    if threshold is not None and float(opis.similarities.min()) <= threshold <= float(opis.similarities.max()):
        traces.insert(0, _upright(threshold, [bottom, 1.02]))
    cosine = axis("Cosine threshold", tickformat=".2f", nticks=7)
    utility = axis("Utility", range=[bottom, 1.02], tickformat=".1f")
    return {"data": traces, "layout": layout(cosine, utility, showlegend=False)}


def drawn_classes(opis: OPISResult) -> list[int]:
    """Rows of the classes drawn as single lines: all, or evenly many from the worst to the best."""
    order = np.argsort(opis.utilities.mean(axis=1), kind="stable")  # (T,)
    places = np.linspace(0, len(order) - 1, min(len(order), MAX_CLASS_LINES)).round().astype(int)
    return [int(row) for row in order[np.unique(places)]]


def describe_classes(opis: OPISResult) -> str:
    """What `class_chart` shows, for those who cannot see it."""
    middle = len(opis.similarities) // 2
    cosines, means = opis.similarities, opis.mean_utility
    low, tenth, ninetieth, high = (metric(float(curve[middle])) for curve in bands(opis))
    return (
        f"Utility of {count(len(opis.class_labels))} classes over cosine thresholds from "
        f"{calibration_range(opis)}. At {metric(float(cosines[middle]))} the mean is "
        f"{metric(float(means[middle]))}, eight of ten classes lie between {tenth} and {ninetieth}, "
        f"all between {low} and {high}."
    )


def describe_scores(histogram: ScoreHistogram, threshold: float | None = None) -> str:
    """What `score_chart` shows, for those who cannot see it."""
    centres = (histogram.edges[1:] + histogram.edges[:-1]) / 2  # (bins,)
    widths = np.diff(histogram.edges)  # (bins,)
    positive, negative = (
        float((centres * widths * density).sum()) for density in (histogram.positive, histogram.negative)
    )
    line = "" if threshold is None else f" The calibrated threshold stands at {metric(threshold)}."
    return f"Positive pairs have a mean cosine of {metric(positive)}, negative pairs of {metric(negative)}.{line}"


def describe_recall(report: Report) -> str:
    """What `recall_chart` shows, for those who cannot see it."""
    parts = []
    for model in report.models:
        if model.recall_curve:
            ends = (min(model.recall_curve), max(model.recall_curve))
            told = " and ".join(f"{metric(model.recall_curve[k])} at K = {k:,}" for k in dict.fromkeys(ends))
            parts.append(f"{model.name} {told}")
    return f"Recall@K: {'; '.join(parts)}."


def _single_classes(opis: OPISResult, x: Numbers) -> Chart:
    """All single classes as one trace with gaps, which draws far faster than a trace each."""
    gapped_x: Numbers = []
    gapped_y: Numbers = []
    for row in drawn_classes(opis):
        gapped_x += [*x, None]
        gapped_y += [*numbers(opis.utilities[row]), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": gapped_x,
        "y": gapped_y,
        "line": {"color": "@muted/0.35", "width": 0.8},
        "hoverinfo": "skip",
    }


def _worst_class(opis: OPISResult, x: Numbers, row: int, dash: str) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": numbers(opis.utilities[row]),
        "text": label(_clip(str(opis.class_labels[row]))),
        "line": {"color": "@accent", "width": 1.8, "dash": dash},
        "hovertemplate": "cosine %{x:.3f}: %{y:.3f}<extra>%{text}</extra>",
    }


def _upright(threshold: float, ends: list[float]) -> Chart:
    """A vertical line at a calibrated threshold."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "calibrated threshold",
        "x": numbers([threshold, threshold]),
        "y": numbers(ends),
        "line": {"color": "@ink", "width": 2, "dash": "dash"},
        "hovertemplate": "calibrated threshold: cosine %{x:.3f}<extra></extra>",
    }


def _edge(x: Numbers, y: np.ndarray) -> Chart:
    """An unseen line that bounds a band."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": numbers(y),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def axis(title: str, **more: Any) -> Chart:
    """An axis with its title."""
    return {"title": {"text": title}, **more}


def layout(x: Chart, y: Chart, showlegend: bool = True) -> Chart:
    """Both axes, and whether lines are named above the chart."""
    return {"xaxis": x, "yaxis": y, "showlegend": showlegend}


def _spaced(ticks: list[int]) -> list[int]:
    """Ticks far enough apart on a logarithmic axis to be read, the last one kept."""
    shown: list[int] = []
    for tick in reversed(ticks):
        if not shown or shown[-1] >= 1.35 * tick:
            shown.append(tick)
    return shown[::-1]


def numbers(values: Any) -> Numbers:
    """Rounded to what a screen can show; not finite becomes a gap."""
    rounded = np.round(np.asarray(values, dtype=np.float64), _DIGITS)
    return [float(v) if np.isfinite(v) else None for v in rounded]


def _clip(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def label(text: str) -> str:
    """A text of the user as Plotly shows it letter by letter."""
    return html.escape(text, quote=False)

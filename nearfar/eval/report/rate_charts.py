"""Charts of error rates by threshold, and of recall against latency."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from nearfar.eval.report.charts import Chart, axis, label, layout, series
from nearfar.eval.report.formatting import metric, percent
from nearfar.eval.report.model import ModelSection, Report
from nearfar.eval.thresholds.curves import PairCurves

# What a chart shows of rates that reach 0: a logarithm or a normal deviate of 0 is off every page.
_LEAST = 1e-5
_NORMAL = NormalDist()
_TICKS = (1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_MOST_FALSE_ACCEPTS = 0.5  # beyond, a threshold is of no use


def roc_chart(report: Report) -> Chart:
    """True accepts over false accepts (logarithmic), with the operating points marked."""
    traces = []
    low = 1.0
    for place, model, curves in _measured(report):
        shown = curves.far >= _LEAST
        low = min(low, float(curves.far[shown].min()))
        line = series(place, model.name, [], 1 - curves.frr[shown], markers=False)
        line["x"] = [_short(rate) for rate in curves.far[shown]]
        line["customdata"] = [round(float(t), 4) for t in curves.thresholds[shown]]
        line["hovertemplate"] = "FAR %{x:.2~p}, TAR %{y:.1%}<br>cosine %{customdata:.3f}<extra>%{fullData.name}</extra>"
        points = [(p.far, p.tar) for p in curves.operating_points if p.far >= _LEAST]
        traces += [line, _marks(line, [*points, (curves.eer, 1 - curves.eer)] if curves.eer >= _LEAST else points)]
    ticks = [10.0**power for power in range(-5, 1) if 10.0**power >= low / 10]
    x = axis(
        "False-accept rate (logarithmic)",
        type="log",
        tickvals=ticks,
        ticktext=[percent(tick).replace("\u00a0", "") for tick in ticks],
    )
    y = axis("True-accept rate", range=[0, 1.02], tickformat=".0%")
    return {"data": traces, "layout": layout(x, y, showlegend=len(_measured(report)) > 1)}


def det_chart(report: Report) -> Chart:
    """False rejects over false accepts, both as normal deviates, on which Gaussian scores give straight lines."""
    traces = []
    ends, lowest = [0.4], 0.1
    for place, model, curves in _measured(report):
        shown = (np.minimum(curves.far, curves.frr) >= _LEAST) & (curves.frr <= 1 - _LEAST)
        shown &= curves.far <= _MOST_FALSE_ACCEPTS
        far, frr = curves.far[shown], curves.frr[shown]
        ends += [float(rate) for rates in (far, frr) if len(rates) for rate in (rates.min(), rates.max())]
        lowest = min([lowest, *far.tolist()])
        line = series(place, model.name, _deviates(far), _deviates(frr), markers=False)
        line["customdata"] = [
            [_short(a), _short(r), round(float(t), 4)]
            for a, r, t in zip(far, frr, curves.thresholds[shown], strict=True)
        ]
        line["hovertemplate"] = (
            "FAR %{customdata[0]:.2~p}, FRR %{customdata[1]:.2~p}<br>"
            "cosine %{customdata[2]:.3f}<extra>%{fullData.name}</extra>"
        )
        point = [curves.eer] if _LEAST <= curves.eer <= 1 - _LEAST else []
        traces += [line, _marks(line, [(_deviate(rate), _deviate(rate)) for rate in point])]
    ticks = [tick for tick in _TICKS if min(ends) / 2 <= tick <= max(ends)]
    labels = {"tickvals": [_deviate(tick) for tick in ticks], "ticktext": [f"{100 * tick:g}%" for tick in ticks]}
    across = [_deviate(lowest / 1.5), _deviate(_MOST_FALSE_ACCEPTS) + 0.1]
    x = axis("False-accept rate (normal deviate)", **labels, range=across, tickangle=0)
    y = axis("False-reject rate", **labels)
    return {"data": traces, "layout": layout(x, y, showlegend=len(_measured(report)) > 1)}


def frontier_chart(report: Report) -> Chart:
    """Recall of exact neighbours over the time of a query (logarithmic)."""
    traces = []
    for place, model in enumerate(report.models):
        points = sorted(model.frontier, key=lambda point: point.milliseconds)
        if points:
            line = series(place, model.name, [p.milliseconds for p in points], [p.recall for p in points], markers=True)
            line["text"] = [label(point.setting) for point in points]
            line["hovertemplate"] = "%{text}: recall %{y:.3f}, %{x:.3~g} ms<extra>%{fullData.name}</extra>"
            spread = [(p.recall - p.interval[0], p.interval[1] - p.recall) if p.interval else (0, 0) for p in points]
            below, above = ([round(max(0.0, side), 5) for side in sides] for sides in zip(*spread, strict=True))
            if any(below) or any(above):
                line["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
            traces.append(line)
    times = [point.milliseconds for model in report.models for point in model.frontier]
    ticks = [tick for power in range(-4, 5) for tick in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    shown = [tick for tick in ticks if min(times) / 2 <= tick <= max(times) * 2]
    x = axis(
        "Milliseconds a query, median (logarithmic)", type="log", tickvals=shown, ticktext=[f"{t:g}" for t in shown]
    )
    y = axis("Recall of exact neighbours", tickformat=".2f")
    return {"data": traces, "layout": layout(x, y, showlegend=len(traces) > 1)}


def describe_rates(report: Report) -> str:
    """What `roc_chart` and `det_chart` show, for those who cannot see them."""
    parts = []
    for _, model, curves in _measured(report):
        told = [f"an equal error rate of {percent(curves.eer)}"]
        told += [f"{percent(p.tar)} true accepts at {percent(p.level)} false accepts" for p in curves.operating_points]
        parts.append(f"{model.name} has {', '.join(told)}")
    return f"Error rates over all thresholds: {'; '.join(parts)}."


def describe_frontier(report: Report) -> str:
    """What `frontier_chart` shows, for those who cannot see it."""
    parts = []
    for model in report.models:
        if model.frontier:
            best = max(model.frontier, key=lambda point: point.recall)
            fast = min(model.frontier, key=lambda point: point.milliseconds)
            parts.append(
                f"{model.name} from recall {metric(fast.recall)} in {fast.milliseconds:.3g} ms to "
                f"{metric(best.recall)} in {best.milliseconds:.3g} ms"
            )
    return f"Recall and latency of the index: {'; '.join(parts)}."


def _measured(report: Report) -> list[tuple[int, ModelSection, PairCurves]]:
    return [(place, model, model.curves) for place, model in enumerate(report.models) if model.curves is not None]


def _marks(line: Chart, points: list[tuple[float, float]]) -> Chart:
    """Dots on a line at its operating points."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_short(x) for x, _ in points],
        "y": [_short(y) for _, y in points],
        "marker": {"color": line["line"]["color"], "size": 8},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _short(value: float) -> float:
    """Four significant digits: rates span decades."""
    return float(f"{value:.4g}")


def _deviate(rate: float) -> float:
    return round(_NORMAL.inv_cdf(rate), 4)


def _deviates(rates: np.ndarray) -> list[float]:
    return [_deviate(float(rate)) for rate in rates]

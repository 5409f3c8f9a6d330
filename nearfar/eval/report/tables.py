"""The report's tables as rows of text, shared by the page and the Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfar.eval.report.comparison import compared, mean_interval, overlap
from nearfar.eval.report.formatting import NONE, STAR, count, metric, percent, quoted, signed, small
from nearfar.eval.report.model import ModelSection, Report
from nearfar.eval.report.serialize import plain
from nearfar.eval.run_comparison import p_text
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.eval.thresholds.curves import PairCurves
from nearfar.eval.thresholds.histograms import ScoreHistogram
from nearfar.eval.thresholds.opis import OPISResult

# The classes that suffer most from a common threshold, named in the table and drawn in the chart.
WORST_CLASSES = 5
FAILING_CLASSES = 10
_ROWS_OF_A_CURVE = 7


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        caption: what it shows, for readers who cannot see where it stands.
        header: a name for each column.
        rows: the cells.
        text_columns: columns to align with the start; the others hold numbers.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    text_columns: tuple[int, ...] = (0,)


def metrics_table(report: Report) -> Table:
    """A row a metric: each model's mean, and its difference from the first with its 95 % bootstrap interval.

    A star marks differences that are significant after Holm's correction. A single model gets the interval of its mean.
    """
    header = ["Metric", report.models[0].name]
    if len(report.models) == 1:
        header.append("95\u00a0% interval")
    for model in report.models[1:]:
        header += [model.name, "Difference (95\u00a0% interval)"]
    rows = [_metric_row(report, name) for name in _metric_names(report)]
    return Table("Mean of each metric over the queries", header, rows)


def tests_table(report: Report) -> Table | None:
    """Every comparison with its p-values, effect size and counts of queries, or None for one model."""
    if report.comparison is None:
        return None
    rows = [
        [
            row.metric,
            f"{row.run} against {row.baseline}",
            p_text(row.p_randomisation).removeprefix("= "),
            p_text(row.p_value).removeprefix("= "),
            small(row.effect_size),
            " / ".join(count(number) for number in (len(row.wins), row.ties, len(row.losses))),
            small(row.minimum_detectable_difference),
        ]
        for row in report.comparison.rows
    ]
    header = ["Metric", "Models", "p", "p (Holm)", "Effect size", "Won / same / lost", "Detectable difference"]
    return Table("Tests of the differences", header, rows, text_columns=(0, 1))


def recall_table(report: Report) -> Table | None:
    """A row a cut-off, or None when no model has a curve."""
    cutoffs = sorted({k for model in report.models for k in model.recall_curve})
    if not cutoffs:
        return None
    rows = [[count(k), *(metric(model.recall_curve.get(k)) for model in report.models)] for k in cutoffs]
    return Table("Recall by number of documents returned", ["K", *(m.name for m in report.models)], rows)


def opis_table(report: Report) -> Table | None:
    """A column a model: OPIS, what chance would give, and the classes it rests on."""
    measured = [(model.name, model.opis) for model in report.models if model.opis is not None]
    if not measured:
        return None
    results = [opis for _, opis in measured]
    epsilon = f"Gap between the best and the worst {percent(results[0].epsilon)} of classes, squared (ε-OPIS)"
    rows = [
        ["OPIS", *(small(r.opis) for r in results)],
        ["Its 95\u00a0% interval, drawing classes again", *(_interval(r) for r in results)],
        ["Noise floor: what chance alone would give", *(small(r.noise_floor) for r in results)],
        ["Corrected OPIS", *(small(r.corrected) for r in results)],
        ["Share of OPIS that is noise", *(_noise_share(r) for r in results)],
        ["Spread between classes (its square root)", *(f"±{metric(r.corrected**0.5)}" for r in results)],
        [epsilon, *(small(r.epsilon_opis) for r in results)],
        ["Mean utility", *(metric(float(r.mean_utility.mean())) for r in results)],
        ["Calibration range, cosines", *(calibration_range(r) for r in results)],
        ["False-accept rate there", *(_far(r) for r in results)],
        ["Classes measured", *(count(len(r.class_labels)) for r in results)],
        ["Samples a class: least, median, most", *(_sizes(r) for r in results)],
        ["Classes too small to measure", *(count(len(r.excluded_classes)) for r in results)],
    ]
    return Table("Threshold consistency", ["Quantity", *(name for name, _ in measured)], rows)


def opis_warnings(report: Report) -> list[str]:
    """A sentence for each model of whose OPIS more than half is noise."""
    return [
        f"{quoted(model.name)}: {model.opis.warning}."
        for model in report.models
        if model.opis is not None and model.opis.warning is not None
    ]


def curve_table(opis: OPISResult) -> Table:
    """The band of the classes' utilities at a few thresholds."""
    steps = len(opis.similarities)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, _ROWS_OF_A_CURVE)).round().astype(int))[::-1]
    low, tenth, ninetieth, high = bands(opis)
    rows = [
        [metric(float(curve[g])) for curve in (opis.similarities, opis.mean_utility, tenth, ninetieth, low, high)]
        for g in chosen
    ]
    header = ["Cosine threshold", "Mean utility", "10th percentile", "90th percentile", "Lowest", "Highest"]
    return Table("Utility of the classes by threshold", header, rows)


def worst_classes_table(opis: OPISResult) -> Table:
    """The classes with the lowest mean utility over the calibration range."""
    rows = []
    for row in worst_classes(opis):
        utility = opis.utilities[row]  # (G,)
        at = int(utility.argmin())
        rows.append(
            [
                str(opis.class_labels[row]),
                count(int(opis.class_sizes[row])),
                metric(float(utility.mean())),
                metric(float(utility[at])),
                metric(float(opis.similarities[at])),
            ]
        )
    header = ["Class", "Samples", "Mean utility", "Lowest utility", "at cosine"]
    return Table("Classes that the common threshold serves worst", header, rows)


def worst_classes(opis: OPISResult) -> list[int]:
    """Rows of the classes with the lowest mean utility, the lowest first."""
    means = opis.utilities.mean(axis=1)  # (T, G) -> (T,)
    return [int(row) for row in np.argsort(means, kind="stable")[:WORST_CLASSES]]


def bands(opis: OPISResult) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lowest, 10th and 90th percentile, and highest utility over the classes, each (G,)."""
    low, tenth, ninetieth, high = np.quantile(opis.utilities, [0.0, 0.1, 0.9, 1.0], axis=0)  # (T, G) -> (4, G)
    return low, tenth, ninetieth, high


def scores_table(histogram: ScoreHistogram) -> Table:
    """Shares of the positive and negative pairs accepted at a few thresholds."""
    widths = np.diff(histogram.edges)  # (bins,)
    above = [_above(density * widths) for density in (histogram.positive, histogram.negative)]  # each (bins + 1,)
    occupied = np.flatnonzero(histogram.positive + histogram.negative)
    first, last = (int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else (0, len(widths))
    chosen = np.unique(np.linspace(first, last, min(last - first, 10) + 1).round().astype(int))
    rows = [[metric(float(histogram.edges[e])), *(percent(float(share[e])) for share in above)] for e in chosen]
    return Table("Pairs at or above a cosine", ["Cosine", "Positive pairs", "Negative pairs"], rows)


def pairs_table(report: Report) -> Table | None:
    """A row a model: pairs behind its histogram, and the overlap of the two densities."""
    rows = [
        [
            model.name,
            count(h.positive_pairs),
            count(h.negative_pairs),
            "a sample" if h.sampled else "all",
            percent(overlap(h)),
        ]
        for model in report.models
        if (h := model.histogram) is not None
    ]
    header = ["Model", "Positive pairs", "Negative pairs", "Scored", "Overlap"]
    return Table("Pairs behind the histograms", header, rows, text_columns=(0, 3)) if rows else None


def rates_table(report: Report) -> Table | None:
    """Operating points of the pairs, a column a model: equal error rate, and true accepts at fixed false accepts."""
    measured = [(model.name, model.curves) for model in report.models if model.curves is not None]
    if not measured:
        return None
    curves = [curve for _, curve in measured]
    levels = sorted({point.level for curve in curves for point in curve.operating_points}, reverse=True)
    rows = [
        ["Equal error rate (EER)", *(f"{percent(c.eer)} at cosine {metric(c.eer_threshold)}" for c in curves)],
        *([f"TAR at FAR {percent(level)}", *(_tar(curve, level) for curve in curves)] for level in levels),
        ["Area under the ROC curve", *(metric(c.auc) for c in curves)],
        ["Pairs scored", *("a sample" if c.sampled else "all" for c in curves)],
    ]
    return Table("Operating points of single pairs", ["Quantity", *(name for name, _ in measured)], rows)


def frontier_table(report: Report) -> Table | None:
    """A row a setting of an index, or None when no frontier was measured."""
    rows = [
        [
            model.name,
            point.setting,
            metric(point.recall),
            NONE if point.interval is None else f"{metric(point.interval[0])} to {metric(point.interval[1])}",
            small(point.milliseconds),
            small(point.p95),
        ]
        for model in report.models
        for point in sorted(model.frontier, key=lambda point: point.milliseconds)
    ]
    header = [
        "Model",
        "Setting",
        "Recall of exact neighbours",
        "95\u00a0% interval",
        "Median ms a query",
        "95\u00a0% below",
    ]
    return Table("Recall and latency of the index", header, rows, text_columns=(0, 1)) if rows else None


def card_table(card: ThresholdCard) -> Table:
    """What a calibrated threshold promises, in numbers."""
    rows = [
        ["Threshold, cosine", metric(card.threshold)],
        ["Risk", card.risk],
        ["Level (alpha)", small(card.alpha)],
        ["Chance of a broken promise (delta)", small(card.delta)],
        ["Measured risk", percent(card.estimated_risk)],
        ["Certified below", NONE if card.certified_risk is None else percent(card.certified_risk)],
        ["Independent units", f"{count(card.units)} {card.unit.replace('_', ' ')}"],
        *([f"Measured {name}", percent(rate)] for name, rate in card.rates.items()),
    ]
    return Table("Terms of the calibrated threshold", ["Quantity", "Value"], rows)


def failing_table(card: ThresholdCard) -> Table | None:
    """The classes for which the threshold does not keep its level, worst first; None when there are none."""
    rows = [[str(failure.label), percent(failure.rate)] for failure in card.failing_classes[:FAILING_CLASSES]]
    total = len(card.failing_classes)
    caption = "Classes that exceed the level" + (
        f", the worst {len(rows)} of {count(total)}" if total > len(rows) else ""
    )
    return Table(caption, ["Class", "Own rate"], rows) if rows else None


def settings_table(caption: str, settings: Mapping[str, Any]) -> Table | None:
    """A row a setting; nested mappings are named with dots."""
    rows = [[name, value] for name, value in flatten(plain(settings))]
    return Table(caption, ["Name", "Value"], rows, text_columns=(0, 1)) if rows else None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and texts of nested settings.

    Example:
        >>> list(flatten({"loss": {"name": "circle", "m": 0.4}, "ks": [1, 5], "seed": None}))
        [('loss.name', 'circle'), ('loss.m', '0.4'), ('ks', '[1, 5]'), ('seed', 'none')]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        elif value is None:
            yield f"{prefix}{name}", "none"
        else:
            yield (
                f"{prefix}{name}",
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )


def calibration_range(opis: OPISResult) -> str:
    """The cosines that the thresholds span, the laxest first."""
    return f"{metric(float(opis.similarities.min()))} to {metric(float(opis.similarities.max()))}"


def _metric_names(report: Report) -> list[str]:
    """Every metric of any model, the primary one first."""
    names = dict.fromkeys([report.primary_metric])
    for model in report.models:
        names.update(dict.fromkeys(model.ranking.mean))
    return list(names)


def _metric_row(report: Report, name: str) -> list[str]:
    baseline = report.models[0]
    row = [name, metric(baseline.ranking.mean.get(name))]
    if len(report.models) == 1:
        interval = mean_interval(report, baseline, name)
        row.append(NONE if interval is None else f"{metric(interval[0])} to {metric(interval[1])}")
    for model in report.models[1:]:
        row += [metric(model.ranking.mean.get(name)), _difference(report, model, name)]
    return row


def _difference(report: Report, model: ModelSection, name: str) -> str:
    change = compared(report, report.models[0].name, model.name, name)
    if change is None:
        return NONE
    mark = f" {STAR}" if change.significant else ""
    if change.low is None or change.high is None:
        return signed(change.difference) + mark
    return f"{signed(change.difference)} ({signed(change.low)} to {signed(change.high)}){mark}"


def _tar(curves: PairCurves, level: float) -> str:
    for point in curves.operating_points:
        if point.level == level:
            return f"{percent(point.tar)} at cosine {metric(point.threshold)}"
    return NONE


def _interval(opis: OPISResult) -> str:
    low, high = opis.interval
    return f"{small(low)} to {small(high)}"


def _noise_share(opis: OPISResult) -> str:
    return percent(min(1.0, opis.noise_floor / opis.opis)) if opis.opis > 0 else NONE


def _sizes(opis: OPISResult) -> str:
    if len(opis.class_sizes) == 0:
        return NONE
    least, median, most = (float(np.quantile(opis.class_sizes, q)) for q in (0.0, 0.5, 1.0))
    return f"{least:,.0f}, {median:,g}, {most:,.0f}"


def _far(opis: OPISResult) -> str:
    if opis.far_range is None:
        return "thresholds given"
    return " to ".join(percent(rate) for rate in sorted(opis.far_range, reverse=True))


def _above(mass: np.ndarray) -> np.ndarray:
    """Share at or above each edge: (bins,) -> (bins + 1,)."""
    return np.append(mass[::-1].cumsum()[::-1], 0.0)

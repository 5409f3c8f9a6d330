"""What the numbers come to: the comparison of two models, and the report's verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nearfar.eval.intervals import bca_interval, bootstrap_means, jackknife_means
from nearfar.eval.paired_tests import sum_over_units
from nearfar.eval.report.formatting import count, metric, percent, quoted, signed, small
from nearfar.eval.report.model import ModelSection, Report
from nearfar.eval.run_comparison import PairComparison, p_text
from nearfar.eval.thresholds.histograms import ScoreHistogram

# Share of tied documents from which on their order may move the metrics' second decimal.
WORTH_TELLING = 0.01
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Verdict:
    """The outcome in words: one sentence, and what goes with it."""

    headline: str
    points: list[str]


def compared(report: Report, baseline: str, model: str, name: str) -> PairComparison | None:
    """One metric of two models, one of which is the report's first; None when they do not share it."""
    for row in report.comparison.rows if report.comparison else ():
        if row.metric == name and (row.baseline, row.run) == (baseline, model):
            return row
        if row.metric == name and (row.run, row.baseline) == (baseline, model):
            return _turned(row)
    return None


def comparisons(report: Report) -> list[PairComparison]:
    """Every later model against the first, for every metric that all have."""
    return report.comparison.rows if report.comparison else []


def mean_interval(report: Report, model: ModelSection, name: str) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of a model's mean over queries (or clusters); None where there is only one."""
    values = np.asarray(model.ranking.per_query[name], dtype=np.float64)  # (Q,)
    ids = model.ranking.query_ids
    names = ids if report.clusters is None else [report.clusters[query] for query in ids]
    number = {unit: code for code, unit in enumerate(dict.fromkeys(names))}
    if len(number) < 2 or not np.isfinite(values).all():
        return None
    units = sum_over_units(values[:, None], np.array([number[unit] for unit in names], dtype=np.int64))
    replicates = bootstrap_means(units, _RESAMPLES, 0)[:, 0]  # (resamples,)
    return bca_interval(float(values.mean()), replicates, jackknife_means(units.sums[:, 0], units.sizes), 0.95)


def overlap(histogram: ScoreHistogram) -> float:
    """Area that the two densities share: 0 when a threshold parts the pairs fully, 1 when none can."""
    widths = np.diff(histogram.edges)  # (bins,)
    return float((np.minimum(histogram.positive, histogram.negative) * widths).sum())


def contrast(report: Report) -> tuple[ModelSection, ModelSection | None]:
    """The model that the verdict is about, the later of two or the best of more, and the one it is held against.

    That is the first model, unless the first is itself the best of three or more: then the next best.
    """
    if len(report.models) == 1:
        return report.models[0], None
    if len(report.models) == 2:
        return report.models[1], report.models[0]
    ranked = sorted(report.models, key=lambda model: -model.ranking.mean[report.primary_metric])
    return ranked[0], ranked[1] if ranked[0] is report.models[0] else report.models[0]


def verdict(report: Report) -> Verdict:
    """Says in words what the numbers of the primary metric, the thresholds and the scores come to."""
    best, against = contrast(report)
    points = [*_cards(report.models), *_reservations(report.models)]
    if against is None:
        return Verdict(_single(report), _state(report.models[0]) + points)
    change = compared(report, against.name, best.name, report.primary_metric)
    assert change is not None  # every model has the primary metric, and one of the two is the first
    counts = (
        f"{count(len(change.wins))} queries score higher with {quoted(best.name)} than with "
        f"{quoted(against.name)}, {count(len(change.losses))} lower, {count(change.ties)} the same."
    )
    return Verdict(_headline(report, change), [counts, *_power(report, change), *_shift(against, best), *points])


def _turned(row: PairComparison) -> PairComparison:
    """The same comparison seen from the other model."""
    return replace(
        row,
        run=row.baseline,
        baseline=row.run,
        mean=row.baseline_mean,
        baseline_mean=row.mean,
        difference=-row.difference,
        low=None if row.high is None else -row.high,
        high=None if row.low is None else -row.low,
        effect_size=None if row.effect_size is None else -row.effect_size,
        win_share=None if row.win_share is None else 1 - row.win_share,
        wins=row.losses,
        losses=row.wins,
    )


def _place(report: Report) -> str:
    queries = f"{count(len(report.models[0].ranking.query_ids))} queries"
    if report.clusters is not None:
        clusters = {report.clusters[query] for query in report.models[0].ranking.query_ids}
        queries += f" in {count(len(clusters))} clusters"
    return f"{report.primary_metric} on {queries} of {report.dataset}"


def _single(report: Report) -> str:
    model = report.models[0]
    interval = mean_interval(report, model, report.primary_metric)
    extent = "" if interval is None else f"; 95\u00a0% interval {metric(interval[0])} to {metric(interval[1])}"
    return f"{_place(report)} is {metric(model.ranking.mean[report.primary_metric])}{extent}."


def _headline(report: Report, change: PairComparison) -> str:
    values = f"from {metric(change.baseline_mean)} to {metric(change.mean)}"
    extent = signed(change.difference)
    if change.low is not None and change.high is not None:
        extent += f"; 95\u00a0% interval {signed(change.low)} to {signed(change.high)}"
    extent += f"; p\u00a0{p_text(change.p_value)}"
    if len(report.models) > 2:
        doubt = "" if change.significant else ", no clear difference"
        return (
            f"{_place(report)} is highest with {quoted(change.run)}: {metric(change.mean)}, against "
            f"{metric(change.baseline_mean)} with {quoted(change.baseline)} ({extent}){doubt}."
        )
    if not change.wins and not change.losses:
        return f"{_place(report)} stayed at {metric(change.mean)}: no query changed."
    if not change.significant:
        return f"{_place(report)} did not clearly change: {values} ({extent})."
    return f"{_place(report)} {'rose' if change.difference > 0 else 'fell'} {values} ({extent})."


def _power(report: Report, change: PairComparison) -> list[str]:
    """What so many queries could have shown, where they show nothing."""
    if change.significant or not (change.wins or change.losses):
        return []
    if change.smallest_p > 0.05:
        return [f"So few queries differ that no p-value below {small(change.smallest_p)} was possible."]
    if change.minimum_detectable_difference is None:
        return []
    found = metric(change.minimum_detectable_difference)
    return [f"So many queries would show a true difference of {found} four times in five; smaller ones often escape."]


def _cards(models: Sequence[ModelSection]) -> list[str]:
    """The calibrated thresholds, and for how many classes they fail."""
    points = []
    for model in models:
        card = model.threshold_card
        if card is not None:
            failing = f" {count(len(card.failing_classes))} classes exceed it." if card.failing_classes else ""
            points.append(
                f"Match with {quoted(model.name)} from cosine {metric(card.threshold)}. {card.promise}{failing}"
            )
    return points


def _state(model: ModelSection) -> list[str]:
    """What a single model's thresholds and scores come to."""
    points = []
    if model.opis is not None:
        spread, corrected = _spread(model.opis.corrected), small(model.opis.corrected)
        points.append(f"At one threshold the classes’ utilities spread by {spread} (corrected OPIS {corrected}).")
    if model.histogram is not None:
        points.append(f"Scores of positive and negative pairs overlap by {percent(overlap(model.histogram))}.")
    return points


def _shift(before: ModelSection, after: ModelSection) -> list[str]:
    """How thresholds and scores moved between two models."""
    points = []
    if before.opis is not None and after.opis is not None:
        old, new = before.opis.corrected, after.opis.corrected
        tale = "as before" if new == old else "more alike" if new < old else "less alike"
        points.append(
            f"One threshold suits the classes {tale}: the spread of their utilities went from {_spread(old)} "
            f"to {_spread(new)} (corrected OPIS from {small(old)} to {small(new)})."
        )
    if before.histogram is not None and after.histogram is not None:
        old, new = overlap(before.histogram), overlap(after.histogram)
        points.append(f"The overlap of positive and negative scores went from {percent(old)} to {percent(new)}.")
    return points


def _spread(variance: float) -> str:
    """A corrected OPIS as a deviation of the utilities."""
    return f"±{math.sqrt(variance):.3f}" if variance != 0 else "nothing beyond chance"


def _reservations(models: Sequence[ModelSection]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    points = []
    for model in models:
        if model.opis is not None and model.opis.warning is not None:
            points.append(
                f"More than half of the OPIS of {quoted(model.name)} is noise; read its corrected value only."
            )
        missing, ties = len(model.ranking.missing_queries), model.ranking.tie_rate
        if missing:
            points.append(f"{quoted(model.name)} returned nothing for {count(missing)} queries; they count as zero.")
        if ties >= WORTH_TELLING:
            points.append(
                f"{percent(ties)} of the documents that {quoted(model.name)} returned tie with a neighbour; "
                f"the rule {quoted(model.ranking.ties)} ordered them."
            )
    return points

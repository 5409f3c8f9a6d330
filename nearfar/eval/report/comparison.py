"""Two models on the same queries: differences, and the report's verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearfar.eval.ranking import RankingResult
from nearfar.eval.report.formatting import count, metric, percent, quoted, signed, small
from nearfar.eval.report.model import ModelSection, Report
from nearfar.eval.thresholds.histograms import ScoreHistogram

# Below this the normal approximation of the mean difference is not to be trusted.
MIN_QUERIES_FOR_INTERVAL = 30
# Share of tied documents from which on their order may move the metrics' second decimal.
WORTH_TELLING = 0.01
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class Comparison:
    """One metric of two models over the same queries.

    Attributes:
        model: the later model's name.
        baseline: the first model's name.
        metric: the metric's name.
        before: the baseline's mean.
        after: the later model's mean.
        difference: after - before.
        low: lower end of the 95 % interval of the difference; None below 30 queries.
        high: upper end.
        risen: queries with a higher value than before.
        fallen: queries with a lower value.
        unchanged: queries with the same value.
    """

    model: str
    baseline: str
    metric: str
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    risen: int
    fallen: int
    unchanged: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero; without an interval, whether the means differ at all."""
        if self.low is None or self.high is None:
            return self.difference != 0
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Verdict:
    """The outcome in words: one sentence, and what goes with it."""

    headline: str
    points: list[str]


def compare(baseline: ModelSection, model: ModelSection, name: str) -> Comparison:
    """Compares one metric query by query.

    The interval is that of the mean paired difference under the normal approximation, queries being
    independent.
    """
    before = baseline.ranking.per_query[name]  # (Q,)
    after = _aligned(model.ranking, name, baseline.ranking.query_ids)  # (Q,)
    change = after - before  # (Q,)
    low = high = None
    if len(change) >= MIN_QUERIES_FOR_INTERVAL:
        half = _NORMAL_975 * float(change.std(ddof=1)) / math.sqrt(len(change))
        low, high = float(change.mean()) - half, float(change.mean()) + half
    return Comparison(
        model=model.name,
        baseline=baseline.name,
        metric=name,
        before=baseline.ranking.mean[name],
        after=model.ranking.mean[name],
        difference=model.ranking.mean[name] - baseline.ranking.mean[name],
        low=low,
        high=high,
        risen=int((change > 0).sum()),
        fallen=int((change < 0).sum()),
        unchanged=int((change == 0).sum()),
    )


def comparisons(report: Report) -> list[Comparison]:
    """Every later model against the first, for every metric that both have."""
    baseline = report.models[0]
    return [
        compare(baseline, model, name)
        for model in report.models[1:]
        for name in baseline.ranking.mean
        if name in model.ranking.per_query
    ]


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
    points = _reservations(report.models)
    if against is None:
        return Verdict(_single(report), _state(report.models[0]) + points)
    change = compare(against, best, report.primary_metric)
    counts = (
        f"{count(change.risen)} queries score higher with {quoted(best.name)} than with "
        f"{quoted(against.name)}, {count(change.fallen)} lower, {count(change.unchanged)} the same."
    )
    return Verdict(_headline(report, change), [counts, *_shift(against, best), *points])


def _aligned(
    ranking: RankingResult, name: str, query_ids: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    place = {query_id: i for i, query_id in enumerate(ranking.query_ids)}
    return np.asarray(ranking.per_query[name], dtype=np.float64)[[place[query_id] for query_id in query_ids]]


def _place(report: Report) -> str:
    queries = count(len(report.models[0].ranking.query_ids))
    return f"{report.primary_metric} on {queries} queries of {report.dataset}"


def _single(report: Report) -> str:
    return f"{_place(report)} is {metric(report.models[0].ranking.mean[report.primary_metric])}."


def _headline(report: Report, change: Comparison) -> str:
    values = f"from {metric(change.before)} to {metric(change.after)}"
    extent = signed(change.difference)
    if change.low is not None and change.high is not None:
        extent += f"; 95\u00a0% interval {signed(change.low)} to {signed(change.high)}"
    if len(report.models) > 2:
        doubt = "" if change.clear else ", no clear difference"
        return (
            f"{_place(report)} is highest with {quoted(change.model)}: {metric(change.after)}, against "
            f"{metric(change.before)} with {quoted(change.baseline)} ({extent}){doubt}."
        )
    if change.risen == change.fallen == 0:
        return f"{_place(report)} stayed at {metric(change.after)}: no query changed."
    if not change.clear:
        return f"{_place(report)} did not clearly change: {values} ({extent})."
    return f"{_place(report)} {'rose' if change.difference > 0 else 'fell'} {values} ({extent})."


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
        missing, ties = len(model.ranking.missing_queries), model.ranking.tie_rate
        if missing:
            points.append(f"{quoted(model.name)} returned nothing for {count(missing)} queries; they count as zero.")
        if ties >= WORTH_TELLING:
            points.append(
                f"{percent(ties)} of the documents that {quoted(model.name)} returned tie with a neighbour; "
                f"the rule {quoted(model.ranking.ties)} ordered them."
            )
    return points

"""What a report is made of; how it is shown is decided elsewhere."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.ranking import RankingResult
from nearfar.eval.run_comparison import Comparison
from nearfar.eval.significance import compare_runs
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.eval.thresholds.curves import PairCurves
from nearfar.eval.thresholds.histograms import ScoreHistogram
from nearfar.eval.thresholds.opis import OPISResult

_PACKAGES = ("nearfar", "torch", "faiss-cpu", "sentence-transformers", "numpy")


@dataclass(frozen=True)
class ExpectedDocument:
    """A document that the judgements name as an answer.

    Attributes:
        id: the document's id.
        text: its full text; the page shortens it.
        grade: its relevance grade.
        rank: its 1-based place in the run, None when it was not returned.
    """

    id: str
    text: str
    grade: int
    rank: int | None


@dataclass(frozen=True)
class ReturnedDocument:
    """A document that the model returned.

    Attributes:
        id: the document's id.
        text: its full text.
        score: the model's score.
        rank: its 1-based place in the run.
        grade: its relevance grade, 0 when it was not judged.
        relevant: whether the grade reaches the relevance level of the evaluation.
    """

    id: str
    text: str
    score: float
    rank: int
    grade: int
    relevant: bool


@dataclass(frozen=True)
class QueryExample:
    """One query with what was wanted and what came.

    Attributes:
        query_id: the query's id.
        text: its text.
        value: its value of the metric that chose it.
        metric: the name of that metric.
        expected: relevant documents, best ranked first, at most as many as `returned` may hold.
        expected_total: number of relevant documents, those not listed included.
        returned: the first documents of the run.
        returned_total: number of documents that the run holds for the query.
    """

    query_id: str
    text: str
    value: float
    metric: str
    expected: list[ExpectedDocument]
    expected_total: int
    returned: list[ReturnedDocument]
    returned_total: int


@dataclass(frozen=True)
class FrontierPoint:
    """How well and how fast an index answers under one setting.

    Attributes:
        setting: what was set, for example "nprobe=8".
        recall: share of the exact neighbours that it finds, in [0, 1].
        milliseconds: median time for one query.
        p95: time that 95 % of the queries stay below, in milliseconds, or None.
        interval: ends of a 95 % interval of the recall, or None.
    """

    setting: str
    recall: float
    milliseconds: float
    p95: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ModelSection:
    """One model's results.

    Attributes:
        name: how the page calls the model, for example "before".
        ranking: its ranking metrics.
        recall_curve: Recall@K by K; may be empty.
        opis: threshold consistency, or None when it was not measured.
        histogram: scores of positive and negative pairs, or None.
        worst_queries: see `nearfar.eval.report.worst_queries`.
        answers: the queries that readers may search and filter, all of them or some; made by `worst_queries` with a
            high limit. The page cuts their texts so that it stays below 8 MB.
        curves: error rates of pairs by threshold, or None.
        threshold_card: a calibrated threshold of pairs on cosines; drawn in the histogram.
        frontier: recall and latency of the model's index under several settings, see
            `nearfar.retrieval.measure_frontier`.

    Raises:
        InputError: the card is one of queries, or of other scores than cosines; or a point of the frontier has a
            recall outside [0, 1] or takes no time.
    """

    name: str
    ranking: RankingResult
    recall_curve: Mapping[int, float] = field(default_factory=dict)
    opis: OPISResult | None = None
    histogram: ScoreHistogram | None = None
    worst_queries: Sequence[QueryExample] = ()
    answers: Sequence[QueryExample] = ()
    curves: PairCurves | None = None
    threshold_card: ThresholdCard | None = None
    frontier: Sequence[FrontierPoint] = ()

    def __post_init__(self) -> None:
        if self.threshold_card is not None:
            self.threshold_card.require("pair", metric="cosine")
        for point in self.frontier:
            if not (0 <= point.recall <= 1 and point.milliseconds > 0):
                raise InputError(f"model {self.name!r} has {point}; recall lies in [0, 1] and milliseconds above 0")


@dataclass(frozen=True)
class Report:
    """Everything that a report says. The first model is the one that others are compared with.

    Attributes:
        title: heading of the page.
        dataset: name of the data set as it should read in a sentence, for example "unseen HPO terms".
        models: one section a model, baseline first; all scored on the same queries.
        primary_metric: the metric that the verdict speaks of.
        acknowledgement: credit that the data set asks for.
        recipe: how the model was made: options, seed; nested mappings are shown flat.
        versions: library versions; those in use by default.
        created: ISO date and time; now (UTC) by default.
        notes: remarks of the author.
        clusters: for each query id a cluster of queries that are not independent, such as synonyms of one term;
            comparisons then count clusters, see `compare_runs`.

    Raises:
        InputError: no model, two models of one name, a model without queries, models scored on different queries, or
            a query without a cluster.
        UnknownNameError: a model lacks the primary metric.
    """

    title: str
    dataset: str
    models: Sequence[ModelSection]
    primary_metric: str
    acknowledgement: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    notes: Sequence[str] = ()
    clusters: Mapping[str, str] | None = None

    @cached_property
    def comparison(self) -> Comparison | None:
        """Every later model against the first, Holm-corrected over all of them and all metrics; None for one model."""
        if len(self.models) == 1:
            return None
        results = {model.name: model.ranking for model in self.models}
        return compare_runs(results, baseline=self.models[0].name, clusters=self.clusters)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("a report needs at least one model; models is empty")
        if isinstance(self.notes, str):
            object.__setattr__(self, "notes", (self.notes,) if self.notes else ())
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two models of the report are named {name!r}; give each its own name")
        for model in self.models:
            self._check(model)
        for query in self.models[0].ranking.query_ids if self.clusters is not None else ():
            if query not in (self.clusters or {}):
                raise InputError(f"query {query!r} has no cluster; give clusters for every query that is scored")

    def _check(self, model: ModelSection) -> None:
        if not model.ranking.query_ids:
            raise InputError(f"model {model.name!r} was scored on no query; evaluate it on at least one")
        if self.primary_metric not in model.ranking.mean:
            raise UnknownNameError(f"primary metric of model {model.name!r}", self.primary_metric, model.ranking.mean)
        first = self.models[0]
        different = set(model.ranking.query_ids) ^ set(first.ranking.query_ids)
        if different:
            raise InputError(
                f"models {first.name!r} and {model.name!r} were scored on different queries, for example "
                f"{min(different)!r} ({len(different)} in all); evaluate both with the same qrels"
            )


def library_versions() -> dict[str, str]:
    """Versions of nearfar, its main dependencies and Python, as installed.

    A package that is not installed is left out.

    Example:
        >>> sorted(library_versions())[-1]
        'torch'
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

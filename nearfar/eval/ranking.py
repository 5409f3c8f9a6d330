"""Ranking metrics of a retrieval run against relevance judgements.

Only the judged documents decide a metric, so nothing is ranked in full: scores become sortable 64-bit keys
(query in the upper half, descending score in the lower), and a binary search gives the rank of each judged
document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.metrics import DEFAULT_METRICS, Metric, compute, parse_metric
from nearfar.eval.ranks import RankedRun, Retrieved, check_options, place, retrieved_scores

Run: TypeAlias = Mapping[str, Mapping[str, float]]
Qrels: TypeAlias = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class RankingResult:
    """What a run is worth against the qrels.

    Attributes:
        query_ids: queries that were scored: those of the qrels with a relevant document, in qrels order.
        per_query: for each metric name a float64 array of shape (len(query_ids),), aligned with `query_ids`.
        mean: for each metric name the mean over `query_ids`.
        missing_queries: scored queries that the run does not answer; they count as zero.
        queries_without_relevant: queries of the qrels without a relevant document; they are not scored.
        tie_rate: share of the retrieved documents whose score equals a neighbour's in the ranking, in [0, 1].
        retrieved: number of documents retrieved for the scored queries.
        relevance_level: smallest grade that counts as relevant.
        ties: the rule that ordered documents of equal score.
    """

    query_ids: list[str]
    per_query: dict[str, NDArray[np.float64]]
    mean: dict[str, float]
    missing_queries: list[str]
    queries_without_relevant: list[str]
    tie_rate: float
    retrieved: int
    relevance_level: int = 1
    ties: str = "trec"


def evaluate_run(
    run: Run,
    qrels: Qrels,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    relevance_level: int = 1,
    ties: str = "trec",
) -> RankingResult:
    """Score a run against relevance judgements, as trec_eval does.

    The mean is over all queries of the qrels that have a relevant document, so a query that the run leaves
    out counts as zero. (pytrec_eval leaves such queries out of the mean; ir_measures counts them as here.)
    Queries of the run that the qrels do not hold are ignored.

    Args:
        run: for each query id the score of each retrieved document id; higher is better.
        qrels: for each query id the integer grade of each judged document id; unjudged documents count as
            grade 0.
        metrics: names, with k a positive number: ``R@k`` (share of the relevant documents within the first
            k), ``Success@k`` (1 when any is; metric learning calls it Recall@K), ``P@k``, ``RR`` and ``RR@k``
            (reciprocal rank), ``nDCG`` and ``nDCG@k`` (gain = grade), ``nDCG(gain=exp)@k`` (gain = 2^grade -
            1), ``AP`` and ``AP@k``, ``Rprec``.
        relevance_level: smallest grade that counts as relevant, 1 by default as in trec_eval. nDCG uses all
            positive grades whatever the level.
        ties: how documents of equal score are ordered. "trec": scores are compared as float32, then the
            larger document id comes first, as in trec_eval. "rank": the order of the run is kept, which must
            be by descending score.

    Returns:
        Per-query values and means.

    Raises:
        UnknownNameError: an unknown metric or tie rule; near names are suggested.
        InputError: an empty run or qrels, no query in common, no relevant document, a score that is NaN or no
            number, a grade that is no integer, or with ties="rank" a run that is not sorted.

    Example:
        >>> run, qrels = {"q1": {"a": 0.9, "b": 0.4}}, {"q1": {"b": 1}, "q2": {"c": 1}}
        >>> result = evaluate_run(run, qrels, ["RR", "R@1"])
        >>> result.mean
        {'RR': 0.25, 'R@1': 0.0}
        >>> result.missing_queries
        ['q2']

    Source: trec_eval (github.com/usnistgov/trec_eval); names from ir-measures.
    """
    parsed = parse_metrics(metrics)
    return summarise(_rank_run(run, qrels, relevance_level, ties), parsed, ties)


def recall_curve(
    run: Run, qrels: Qrels, ks: Sequence[int], *, relevance_level: int = 1, ties: str = "trec"
) -> dict[int, float]:
    """Mean ``R@k`` at many depths in one pass.

    Args:
        run: as for `evaluate_run`.
        qrels: as for `evaluate_run`.
        ks: positive depths.
        relevance_level: as for `evaluate_run`.
        ties: as for `evaluate_run`.

    Returns:
        For each k in `ks` the share of the relevant documents within the first k, averaged over the queries.

    Raises:
        InputError: no depth, a depth below 1, or as for `evaluate_run`.

    Example:
        >>> recall_curve({"q": {"a": 0.9, "b": 0.4}}, {"q": {"b": 1}}, [1, 2])
        {1: 0.0, 2: 1.0}
    """
    if not len(ks) or any(int(k) != k or k < 1 for k in ks):
        raise InputError(f"ks must be positive integers, got {list(ks)}")
    judged = _rank_run(run, qrels, relevance_level, ties).judged
    rows, ranks = judged.only_relevant()
    order = np.argsort(ranks, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum(1.0 / judged.relevant[rows[order]])])
    reached = np.searchsorted(ranks[order], np.asarray(ks), side="right")
    return {int(k): float(gained[n] / len(judged.relevant)) for k, n in zip(ks, reached, strict=True)}


def parse_metrics(metrics: Sequence[str]) -> list[Metric]:
    """Read the metric names of a call."""
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"metrics must be a list of names such as ['R@10', 'RR'], got {metrics!r}")
    return [parse_metric(name) for name in metrics]


def summarise(ranked: RankedRun, metrics: list[Metric], ties: str) -> RankingResult:
    """Compute the metrics of a ranked run."""
    per_query = {metric.name: compute(metric, ranked.judged) for metric in metrics}
    return RankingResult(
        query_ids=ranked.query_ids,
        per_query=per_query,
        mean={name: float(values.mean()) for name, values in per_query.items()},
        missing_queries=ranked.missing,
        queries_without_relevant=ranked.without_relevant,
        tie_rate=ranked.tie_rate,
        retrieved=ranked.retrieved,
        relevance_level=ranked.judged.level,
        ties=ties,
    )


def _rank_run(run: Run, qrels: Qrels, relevance_level: int, ties: str) -> RankedRun:
    check_options(relevance_level, ties)
    if not run or not qrels:
        raise InputError(f"the {'qrels are' if run else 'run is'} empty; there is nothing to evaluate")
    names = list(qrels)
    documents = [run.get(name) or {} for name in names]
    if not any(documents):
        raise InputError(
            f"the run and the qrels share no query (run has {next(iter(run))!r}, qrels have {names[0]!r}), "
            "or the run retrieved nothing"
        )
    grades = _flat_grades(qrels)
    judged_rows = np.repeat(np.arange(len(names)), _lengths(qrels.values()))
    retrieved = retrieved_scores(names, _lengths(documents), _flat_scores(names, documents), ties)

    hits = [
        (row, document)
        for row, (ranking, judged) in enumerate(zip(documents, qrels.values(), strict=True))
        for document in ranking.keys() & judged.keys()
    ]
    judgements = list(qrels.values())
    hit_rows = np.fromiter((row for row, _ in hits), np.int64, len(hits))
    hit_grades = np.fromiter((judgements[row][document] for row, document in hits), np.int64, len(hits))
    rank = _ranks_as_listed if ties == "rank" else _ranks_larger_id_first
    ranks = rank(retrieved, documents, hits, hit_rows)
    return place(retrieved, hit_rows, ranks, hit_grades, judged_rows, grades, relevance_level)


def _lengths(mappings: Iterable[Mapping[str, Any]]) -> NDArray[np.int64]:
    return np.array([len(mapping) for mapping in mappings], dtype=np.int64)


def _flat_scores(names: list[str], documents: list[Mapping[str, float]]) -> NDArray[np.float64]:
    count = sum(map(len, documents))
    try:
        return np.fromiter(chain.from_iterable(ranking.values() for ranking in documents), np.float64, count)
    except (TypeError, ValueError):
        for name, ranking in zip(names, documents, strict=True):
            for document, score in ranking.items():
                try:
                    float(score)
                except (TypeError, ValueError):
                    raise InputError(
                        f"query {name!r}: the score of document {document!r} is {score!r}, not a number"
                    ) from None
        raise


def _flat_grades(qrels: Qrels) -> NDArray[np.int64]:
    kinds = set(map(type, chain.from_iterable(judged.values() for judged in qrels.values())))
    wrong = tuple(kind for kind in kinds if not issubclass(kind, Integral))
    if wrong:
        name, document, grade = next(
            (name, document, grade)
            for name, judged in qrels.items()
            for document, grade in judged.items()
            if isinstance(grade, wrong)
        )
        raise InputError(f"query {name!r}: the relevance of document {document!r} is {grade!r}, not an integer")
    return np.fromiter(chain.from_iterable(judged.values() for judged in qrels.values()), np.int64)


def _ranks_as_listed(
    retrieved: Retrieved,
    documents: list[Mapping[str, float]],
    hits: list[tuple[int, str]],
    hit_rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    place_in = {row: {document: rank for rank, document in enumerate(documents[row], start=1)} for row, _ in hits}
    return np.fromiter((place_in[row][document] for row, document in hits), np.int64, len(hits))


def _ranks_larger_id_first(
    retrieved: Retrieved,
    documents: list[Mapping[str, float]],
    hits: list[tuple[int, str]],
    hit_rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    scores = np.fromiter((documents[row][document] for row, document in hits), np.float64, len(hits))
    ranks, keys, tied = retrieved.ranks(hit_rows, scores)
    behind: dict[int, dict[str, int]] = {}  # for each tied score: place of each document among its equals
    for hit in np.flatnonzero(tied):
        row, document = hits[hit]
        key = int(keys[hit])
        if key not in behind:
            start, end = retrieved.start[row : row + 2]
            equals = set(np.flatnonzero(retrieved.keys[start:end] == keys[hit]).tolist())
            names = sorted((name for at, name in enumerate(documents[row]) if at in equals), reverse=True)
            behind[key] = {name: place for place, name in enumerate(names)}
        ranks[hit] += behind[key][document]
    return ranks

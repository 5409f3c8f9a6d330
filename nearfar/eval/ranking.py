"""Ranking metrics of a retrieval run against relevance judgements.

Only the judged documents decide a metric, so nothing is ranked in full: scores become sortable 64-bit keys
(query in the upper half, descending score in the lower), and a binary search gives the rank of each judged
document (`score_keys`; arrays, whose rows are sorted as an index returns them, need no keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.metrics import DEFAULT_METRICS, Metric, compute, parse_metric
from nearfar.eval.ranks import Hits, RankedRun, check_options, place
from nearfar.eval.score_keys import ScoreKeys, score_keys

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

    def geometric_mean(self, metric: str, floor: float = 1e-5) -> float:
        """Geometric mean over the queries, which weak queries pull down; of AP it is trec_eval's gm_map.

        Args:
            metric: one of the names in `per_query`.
            floor: smaller values count as this; 1e-5 as in trec_eval.

        Raises:
            UnknownNameError: the metric was not computed.
        """
        if metric not in self.per_query:
            raise UnknownNameError("metric of this result", metric, self.per_query)
        return float(np.exp(np.log(np.maximum(self.per_query[metric], floor)).mean()))


def evaluate_run(
    run: Run,
    qrels: Qrels,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    relevance_level: int = 1,
    ties: str = "trec",
    drop_self: bool = False,
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
            1), ``AP`` and ``AP@k``, ``Rprec``, ``Bpref`` (exact; trec_eval divides in single precision, which moves
            it by up to 6e-8), ``ERR`` and ``ERR@k`` (grades up to 4 as in gdeval, ``ERR(max_rel=3)@10`` for another
            scale), ``RBP`` (p = 0.8) and ``RBP(p=0.95)`` (binary gains: ``RBP(rel=1,p=0.8)`` of ir-measures, with
            rel = `relevance_level`), ``Judged`` and ``Judged@k`` (share of the retrieved documents that are judged).
        relevance_level: smallest grade that counts as relevant, 1 by default as in trec_eval. nDCG and ERR use
            all positive grades whatever the level.
        ties: how documents of equal score (compared as float32, as in trec_eval) are ordered. "trec": the larger
            document id comes first, as in trec_eval. "rank": the order of the run is kept, which must be by
            descending score. "pessimistic": unjudged documents come first, then judged ones, the best last, so that
            a tie never helps. "expected": every order is equally likely, and the mean over all of them is given;
            Bpref and ERR, which have no closed form, are refused.
        drop_self: remove the document whose id is the query's from the run and from the qrels, as when documents
            serve as queries; by id, never the first hit.

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
    return summarise(_rank_run(run, qrels, relevance_level, ties, drop_self), parsed, ties)


def recall_curve(
    run: Run,
    qrels: Qrels,
    ks: Sequence[int],
    *,
    relevance_level: int = 1,
    ties: str = "trec",
    drop_self: bool = False,
) -> dict[int, float]:
    """Mean ``R@k`` at many depths in one pass.

    Args:
        run: as for `evaluate_run`.
        qrels: as for `evaluate_run`.
        ks: positive depths.
        relevance_level: as for `evaluate_run`.
        ties: as for `evaluate_run`.
        drop_self: as for `evaluate_run`.

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
    judged = _rank_run(run, qrels, relevance_level, ties, drop_self).judged
    if judged.tied is not None:
        return {int(k): float(compute(parse_metric(f"R@{int(k)}"), judged).mean()) for k in ks}
    rows, ranks, _ = judged.relevant_hits
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


def _rank_run(run: Run, qrels: Qrels, relevance_level: int, ties: str, drop_self: bool) -> RankedRun:
    check_options(relevance_level, ties)
    if not run or not qrels:
        raise InputError(f"the {'qrels are' if run else 'run is'} empty; there is nothing to evaluate")
    names = list(qrels)
    documents = [run.get(name) or {} for name in names]
    judgements = list(qrels.values())
    if not any(documents):
        raise InputError(
            f"the run and the qrels share no query (run has {next(iter(run))!r}, qrels have {names[0]!r}), "
            "or the run retrieved nothing"
        )
    if drop_self:
        documents = [_without(name, ranking) for name, ranking in zip(names, documents, strict=True)]
        judgements = [_without(name, judged) for name, judged in zip(names, judgements, strict=True)]
    lengths = _lengths(documents)
    grades = _flat_grades(names, judgements)
    keys = score_keys(names, lengths, _flat_scores(names, documents), ties)
    found = [
        (row, document, ranking[document], grade)
        for row, (ranking, judged) in enumerate(zip(documents, judgements, strict=True))
        for document, grade in judged.items()
        if document in ranking
    ]
    columns: Sequence[Sequence[Any]] = list(zip(*found, strict=True)) or [(), (), (), ()]
    hit_rows = np.array(columns[0], dtype=np.int64)
    above, tied, hit_keys = keys.find(hit_rows, np.array(columns[2], dtype=np.float64))
    hits = Hits(
        rows=hit_rows,
        above=above,
        tied=tied,
        within=_places_within_ties(ties, keys, documents, hit_rows, columns[1], tied, hit_keys),
        grades=np.array(columns[3], dtype=np.int64),
    )
    judged_rows = np.repeat(np.arange(len(names)), _lengths(judgements))
    return place(names, lengths, keys.tied_documents(), hits, judged_rows, grades, relevance_level, ties)


def _without(name: str, documents: Mapping[str, Any]) -> Mapping[str, Any]:
    if name not in documents:
        return documents
    return {document: value for document, value in documents.items() if document != name}


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


def _flat_grades(names: list[str], judgements: list[Mapping[str, int]]) -> NDArray[np.int64]:
    grades = list(chain.from_iterable(judged.values() for judged in judgements))
    wrong = tuple(kind for kind in set(map(type, grades)) if not issubclass(kind, Integral))
    if wrong:
        name, document, grade = next(
            (name, document, grade)
            for name, judged in zip(names, judgements, strict=True)
            for document, grade in judged.items()
            if isinstance(grade, wrong)
        )
        raise InputError(f"query {name!r}: the relevance of document {document!r} is {grade!r}, not an integer")
    return np.array(grades, dtype=np.int64)


def _places_within_ties(
    ties: str,
    keys: ScoreKeys,
    documents: list[Mapping[str, float]],
    rows: NDArray[np.int64],
    names: Sequence[str],
    tied: NDArray[np.int64],
    hit_keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Place from 0 of each found document among those of its score: by descending id, or as the run lists them."""
    within = np.zeros(len(rows), dtype=np.int64)
    if ties not in ("trec", "rank"):
        return within
    places: dict[int, dict[str, int]] = {}  # for each score of a query that several documents share
    for hit in np.flatnonzero(tied > 1).tolist():
        key = int(hit_keys[hit])
        if key not in places:
            row = int(rows[hit])
            start, end = keys.start[row : row + 2]
            listed = list(documents[row])
            # As float32 two scores may be equal that the run, by ties="rank", still tells apart by its order.
            equals = [listed[at] for at in np.flatnonzero(keys.keys[start:end] == hit_keys[hit]).tolist()]
            if ties == "trec":
                equals.sort(reverse=True)
            places[key] = {name: place for place, name in enumerate(equals)}
        within[hit] = places[key][names[hit]]
    return within

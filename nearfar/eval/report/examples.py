"""The queries that a model answers worst, with what it returned."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.ranking import RankingResult
from nearfar.eval.report.model import ExpectedDocument, QueryExample, ReturnedDocument


def worst_queries(
    ranking: RankingResult,
    run: Mapping[str, Mapping[str, float]],
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    metric: str,
    limit: int = 20,
    depth: int = 5,
) -> list[QueryExample]:
    """Picks the queries with the lowest value of a metric, the worst first.

    Queries of equal value are ordered by how deep their first relevant document lies, deepest when it was not
    returned, and then as in `ranking.query_ids`.

    Args:
        ranking: result of `evaluate_run` on `run` and `qrels`.
        run: score of each returned document by query id.
        queries: text by query id.
        documents: text by document id.
        qrels: relevance grade by query id and document id.
        metric: a name of `ranking.per_query`.
        limit: how many queries at most.
        depth: how many returned, and how many relevant, documents to list for each.

    Raises:
        UnknownNameError: `ranking` does not hold the metric.
        InputError: `limit` or `depth` is negative, or a text is missing.

    Example:
        >>> import numpy as np
        >>> value = {"RR@10": np.array([1.0, 0.5])}
        >>> ranking = RankingResult(["q1", "q2"], value, {"RR@10": 0.75}, [], [], 0.0, 3)
        >>> run = {"q1": {"d1": 0.9}, "q2": {"d1": 0.8, "d2": 0.7}}
        >>> texts = {"d1": "Short stature", "d2": "Tall stature"}
        >>> qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}}
        >>> worst = worst_queries(ranking, run, {"q1": "small", "q2": "tall"}, texts, qrels, "RR@10", limit=1)
        >>> worst[0].text, worst[0].returned[0].text, worst[0].expected[0].rank
        ('tall', 'Short stature', 2)
    """
    if metric not in ranking.per_query:
        raise UnknownNameError("metric", metric, ranking.per_query)
    for name, number in (("limit", limit), ("depth", depth)):
        if number < 0:
            raise InputError(f"{name} is {number}; it must be 0 or more")
    values = ranking.per_query[metric]
    order = sorted(
        range(len(ranking.query_ids)),
        key=lambda i: (
            float(values[i]),
            -_first_relevant_rank(ranking, run, qrels, ranking.query_ids[i]),
            i,
        ),
    )
    examples = []
    for i in order[:limit]:
        query_id = ranking.query_ids[i]
        order_of_documents = _ranked(run.get(query_id, {}), ranking.ties)
        expected = _expected(ranking, qrels[query_id], order_of_documents, documents)
        examples.append(
            QueryExample(
                query_id=query_id,
                text=_text(queries, query_id, "query"),
                value=float(values[i]),
                metric=metric,
                expected=expected[:depth],
                expected_total=len(expected),
                returned=_returned(
                    ranking, run.get(query_id, {}), qrels[query_id], order_of_documents[:depth], documents
                ),
                returned_total=len(order_of_documents),
            )
        )
    return examples


def _ranked(scores: Mapping[str, float], ties: str) -> list[str]:
    """Document ids, best first, placed as `evaluate_run` places them: scores compare as float32.

    Equal scores go by id downwards under the rule "trec", else as in the run.
    """
    ids = sorted(scores, reverse=True) if ties == "trec" else list(scores)
    return sorted(ids, key=lambda document: -np.float32(scores[document]))


def _relevant(ranking: RankingResult, grades: Mapping[str, int]) -> list[str]:
    return [document for document, grade in grades.items() if grade >= ranking.relevance_level]


def _first_relevant_rank(
    ranking: RankingResult,
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    query_id: str,
) -> float:
    """Number of documents scored above the best relevant one; infinite when none was returned."""
    scores = run.get(query_id, {})
    best = max((scores[d] for d in _relevant(ranking, qrels[query_id]) if d in scores), default=None)
    return math.inf if best is None else sum(score > best for score in scores.values())


def _expected(
    ranking: RankingResult, grades: Mapping[str, int], order: list[str], documents: Mapping[str, str]
) -> list[ExpectedDocument]:
    ranks = {document: rank for rank, document in enumerate(order, start=1)}
    found = [
        ExpectedDocument(document, _text(documents, document, "document"), int(grades[document]), ranks.get(document))
        for document in _relevant(ranking, grades)
    ]
    return sorted(found, key=lambda document: (document.rank or math.inf, -document.grade, document.id))


def _returned(
    ranking: RankingResult,
    scores: Mapping[str, float],
    grades: Mapping[str, int],
    order: list[str],
    documents: Mapping[str, str],
) -> list[ReturnedDocument]:
    return [
        ReturnedDocument(
            id=document,
            text=_text(documents, document, "document"),
            score=float(scores[document]),
            rank=rank,
            grade=int(grades.get(document, 0)),
            relevant=grades.get(document, 0) >= ranking.relevance_level,
        )
        for rank, document in enumerate(order, start=1)
    ]


def _text(texts: Mapping[str, str], key: str, kind: str) -> str:
    if key not in texts:
        raise InputError(f"no text for {kind} {key!r}; pass the texts of all {kind}s of the run and the qrels")
    return texts[key]

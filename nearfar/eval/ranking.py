"""Ranking metrics of a retrieval run against relevance judgements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RankingResult:
    """What a run is worth against the qrels.

    Attributes:
        query_ids: queries that were scored: those of the qrels with at least one relevant document, in qrels order.
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

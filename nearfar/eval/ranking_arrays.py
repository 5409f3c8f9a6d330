"""The ranking metrics on integer arrays, as an index returns them, without a Python object per document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import DuplicateIdError, InputError
from nearfar.eval.metrics import DEFAULT_METRICS
from nearfar.eval.ranking import RankingResult, parse_metrics, summarise
from nearfar.eval.ranks import Retrieved, check_options, place, retrieved_scores


def evaluate_arrays(
    document_ids: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    qrels_indptr: NDArray[np.integer[Any]],
    qrels_documents: NDArray[np.integer[Any]],
    qrels_grades: NDArray[np.integer[Any]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    relevance_level: int = 1,
    ties: str = "trec",
    query_ids: Sequence[str] | None = None,
) -> RankingResult:
    """`evaluate_run` on integer arrays, as an index returns them.

    Args:
        document_ids: integers (Q, k), best first or not; -1 pads the end of a short row.
        scores: (Q, k), higher is better; ignored where the id is -1.
        qrels_indptr: (Q + 1,), query i is judged by entries ``qrels_indptr[i]:qrels_indptr[i + 1]`` (CSR
            layout).
        qrels_documents: (J,) ids of the judged documents, distinct within a query, in any order.
        qrels_grades: (J,) their integer grades.
        metrics: as for `evaluate_run`.
        relevance_level: as for `evaluate_run`.
        ties: as for `evaluate_run`; under "trec" the larger number comes first.
        query_ids: Q names for the result; the row numbers by default.

    Returns:
        The same as `evaluate_run`.

    Raises:
        UnknownNameError: an unknown metric or tie rule.
        InputError: shapes that do not fit, a judged document retrieved twice, or as for `evaluate_run`.

    Example:
        >>> import numpy as np
        >>> ids, scores = np.array([[4, 7]]), np.array([[0.9, 0.4]], dtype=np.float32)
        >>> evaluate_arrays(ids, scores, np.array([0, 1]), np.array([7]), np.array([1]), ["RR"]).mean
        {'RR': 0.5}
    """
    parsed = parse_metrics(metrics)
    check_options(relevance_level, ties)
    indptr = np.asarray(qrels_indptr, dtype=np.int64)
    documents, grades = np.asarray(qrels_documents), np.asarray(qrels_grades)
    _check_arrays(document_ids, scores, indptr, documents, grades)
    queries = len(document_ids)
    names = list(query_ids) if query_ids is not None else [str(row) for row in range(queries)]
    if len(names) != queries:
        raise InputError(f"{len(names)} query_ids for {queries} rows of document_ids")

    valid = document_ids >= 0  # (Q, k)
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        raise InputError("document_ids: -1 may only pad the end of a row")
    lengths = valid.sum(axis=1)
    ids = document_ids[valid].astype(np.int64)  # (Q, k) -> (n,): padding is gone
    flat_scores = scores[valid].astype(np.float64)
    retrieved = retrieved_scores(names, lengths, flat_scores, ties)
    judged_rows = np.repeat(np.arange(queries), np.diff(indptr))
    at, entry = _find_judged(retrieved, ids, judged_rows, documents.astype(np.int64))
    hit_rows, judged_grades = judged_rows[entry], grades.astype(np.int64)
    if ties == "rank":
        hit_ranks = at - retrieved.start[hit_rows] + 1
    else:
        hit_ranks = _ranks_larger_number_first(retrieved, ids, at, hit_rows, flat_scores[at])
    ranked = place(retrieved, hit_rows, hit_ranks, judged_grades[entry], judged_rows, judged_grades, relevance_level)
    return summarise(ranked, parsed, ties)


def _ranks_larger_number_first(
    retrieved: Retrieved,
    ids: NDArray[np.int64],
    at: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> NDArray[np.int64]:
    ranks, keys, tied = retrieved.ranks(rows, scores)
    if tied.any():
        equals = np.flatnonzero(np.isin(retrieved.keys, keys[tied]))
        order = equals[np.lexsort((-ids[equals], retrieved.keys[equals]))]
        ordered = retrieved.keys[order]
        behind = np.zeros(len(ids), dtype=np.int64)
        behind[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
        ranks += behind[at]
    return ranks


def _check_arrays(
    document_ids: NDArray[Any],
    scores: NDArray[Any],
    indptr: NDArray[np.int64],
    documents: NDArray[Any],
    grades: NDArray[Any],
) -> None:
    if document_ids.ndim != 2 or 0 in document_ids.shape or document_ids.shape != scores.shape:
        raise InputError(
            f"document_ids {document_ids.shape} and scores {scores.shape} must have the same shape "
            "(queries, depth) and not be empty"
        )
    for name, array in (
        ("document_ids", document_ids),
        ("qrels_documents", documents),
        ("qrels_grades", grades),
    ):
        if array.dtype.kind not in "iu":
            raise InputError(f"{name} has type {array.dtype}; it must hold integers")
    if documents.ndim != 1 or documents.shape != grades.shape:
        raise InputError(f"qrels_documents {documents.shape} and qrels_grades {grades.shape} must be equally long")
    if (
        indptr.shape != (len(document_ids) + 1,)
        or indptr[0] != 0
        or indptr[-1] != len(documents)
        or (np.diff(indptr) < 0).any()
    ):
        raise InputError(
            f"qrels_indptr must hold {len(document_ids) + 1} numbers that ascend from 0 to {len(documents)}"
        )


def _find_judged(
    retrieved: Retrieved,
    ids: NDArray[np.int64],
    judged_rows: NDArray[np.int64],
    documents: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat positions of the retrieved documents that are judged, and the qrels entry of each."""
    vocabulary, columns = np.unique(documents, return_inverse=True)
    pairs = judged_rows * len(vocabulary) + columns  # (J,) one number for each judged (query, document)
    order = np.argsort(pairs)
    pairs = pairs[order]
    if (pairs[1:] == pairs[:-1]).any():
        raise DuplicateIdError("the qrels judge a document twice for one query; keep one grade")
    at = np.flatnonzero(np.isin(ids, documents))  # judged for some query, most of them for another one
    rows = np.searchsorted(retrieved.start, at, side="right") - 1
    wanted = rows * len(vocabulary) + np.searchsorted(vocabulary, ids[at])
    slot = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    match = pairs[slot] == wanted if len(pairs) else np.zeros(0, dtype=bool)
    at, entry = at[match], order[slot[match]]
    if len(np.unique(entry)) < len(entry):
        raise DuplicateIdError("document_ids: a judged document was retrieved twice for one query; drop repeats")
    return at, entry

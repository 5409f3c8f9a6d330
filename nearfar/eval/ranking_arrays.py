"""The ranking metrics on integer arrays, as an index returns them, without a Python object per document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import DuplicateIdError, InputError
from nearfar.eval.metrics import DEFAULT_METRICS
from nearfar.eval.ranking import RankingResult, parse_metrics, summarise
from nearfar.eval.ranks import Hits, check_options, place, refuse_nan, refuse_unsorted

_BLOCK = 1 << 19  # retrieved documents at a time
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: neighbouring ids land far apart


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
    self_ids: NDArray[np.integer[Any]] | None = None,
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
        self_ids: (Q,) the document that each query itself is, or -1; removed from the run and from the qrels, by id
            and never as the first hit.

    Returns:
        The same as `evaluate_run`. Memory beside the input: one block of rows (some 30 MB) and what was found.

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
    judged = _judgements(indptr, documents.astype(np.int64), grades.astype(np.int64))
    own = _checked_self_ids(self_ids, queries)
    if own is not None:
        judged = judged.keep(judged.documents != own[judged.rows])

    blocks = []
    step = max(1, _BLOCK // document_ids.shape[1])
    for first in range(0, queries, step):
        rows = slice(first, min(first + step, queries))
        ranked = _ranked_rows(document_ids[rows], scores[rows], None if own is None else own[rows], ties, names, first)
        blocks.append(_find(ranked, judged.between(first, rows.stop), ties, first))
    hits = Hits(*(np.concatenate(column) for column in zip(*(block.columns for block in blocks), strict=True)))
    return summarise(
        place(
            names,
            np.concatenate([block.lengths for block in blocks]),
            np.concatenate([block.tied_documents for block in blocks]),
            hits,
            judged.rows,
            judged.grades,
            relevance_level,
            ties,
        ),
        parsed,
        ties,
    )


@dataclass(frozen=True)
class _Judgements:
    """Judged documents, int64 (J,) each, ascending by row, then by document."""

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    grades: NDArray[np.int64]

    def keep(self, mask: NDArray[np.bool_]) -> _Judgements:
        return _Judgements(self.rows[mask], self.documents[mask], self.grades[mask])

    def between(self, first: int, last: int) -> _Judgements:
        """Those of the rows from `first` to before `last`, numbered from 0."""
        part = slice(*np.searchsorted(self.rows, [first, last]))
        return _Judgements(self.rows[part] - first, self.documents[part], self.grades[part])


@dataclass(frozen=True)
class _RankedRows:
    """Some rows of a run, best first.

    Attributes:
        ids: (B, k) integers.
        valid: bool (B, k), which entries hold a document; they come first in each row. None: all do.
        equal: bool (B, k - 1), entries with the score of the next one. None: none has.
    """

    ids: NDArray[np.integer[Any]]
    valid: NDArray[np.bool_] | None
    equal: NDArray[np.bool_] | None


@dataclass(frozen=True)
class _Found:
    """What a block contributes: the columns of `Hits`, and for each row its documents and how many of them tie."""

    columns: tuple[NDArray[np.int64], ...]
    lengths: NDArray[np.int64]
    tied_documents: NDArray[np.int64]


def _judgements(indptr: NDArray[np.int64], documents: NDArray[np.int64], grades: NDArray[np.int64]) -> _Judgements:
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    same_row = rows[1:] == rows[:-1]
    if (same_row & (documents[1:] < documents[:-1])).any():
        order = np.lexsort((documents, rows))
        documents, grades = documents[order], grades[order]
    if (same_row & (documents[1:] == documents[:-1])).any():
        raise DuplicateIdError("the qrels judge a document twice for one query; keep one grade")
    return _Judgements(rows, documents, grades)


def _ranked_rows(
    ids: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    own: NDArray[np.int64] | None,
    ties: str,
    names: Sequence[str],
    first: int,
) -> _RankedRows:
    """Check a block of rows, drop what is no document, and put each row in order."""
    valid = None
    if ids.min() < 0:
        valid = ids >= 0
        if (valid[:, 1:] & ~valid[:, :-1]).any():
            raise InputError("document_ids: -1 may only pad the end of a row")
    with np.errstate(over="ignore"):  # beyond float32 a score becomes infinite, as in trec_eval
        single = scores.astype(np.float32)
    broken = np.isnan(single.min()) if valid is None else np.isnan(single.min(where=valid, initial=0.0))
    if broken:
        wrong = np.isnan(single) if valid is None else np.isnan(single) & valid
        raise refuse_nan(names[first + int(np.argmax(wrong.any(axis=1)))])
    if own is not None and (ids == own[:, None]).any():
        valid = (ids != own[:, None]) if valid is None else valid & (ids != own[:, None])
        order = np.argsort(~valid, axis=1, kind="stable")  # what is dropped goes to the end
        ids, single, valid, scores = (np.take_along_axis(a, order, axis=1) for a in (ids, single, valid, scores))
    within = valid[:, 1:] if valid is not None else np.True_
    listed = scores if ties == "rank" else single
    rises = (listed[:, 1:] > listed[:, :-1]) & within
    if rises.any():
        if ties == "rank":
            raise refuse_unsorted(names[first + int(np.argmax(rises.any(axis=1)))])
        key = -single if valid is None else np.where(valid, -single, np.nan)  # NaN sorts last
        order = np.argsort(key, axis=1, kind="stable")
        ids, single = np.take_along_axis(ids, order, axis=1), np.take_along_axis(single, order, axis=1)
        if valid is not None:
            valid = np.take_along_axis(valid, order, axis=1)
            within = valid[:, 1:]
    equal = (single[:, 1:] == single[:, :-1]) & within
    return _RankedRows(ids, valid, equal if equal.any() else None)


def _find(run: _RankedRows, judged: _Judgements, ties: str, first: int) -> _Found:
    """Look for the judged documents in a block of rows that starts at row `first`."""
    count, depth = run.ids.shape
    rows, places, entry = _matches(run, judged)
    above, tied, within = places, np.ones_like(places), np.zeros_like(places)
    tied_documents = np.zeros(count, dtype=np.int64)
    if run.equal is not None:
        with_ties = np.flatnonzero(run.equal.any(axis=1))
        start, end = _bounds(run.equal[with_ties])
        tied_documents[with_ties] = (start != end).sum(axis=1)
        at = np.flatnonzero(tied_documents[rows])
        own = np.searchsorted(with_ties, rows[at]), places[at]
        above = places.copy()
        above[at], tied[at] = start[own], (end - start)[own] + 1
        within = _larger_id_first(run.ids, rows, above, tied, places) if ties == "trec" else places - above
    lengths = np.full(count, depth) if run.valid is None else run.valid.sum(axis=1)
    return _Found((rows + first, above, tied, within, judged.grades[entry]), lengths, tied_documents)


def _matches(run: _RankedRows, judged: _Judgements) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, place in the row, and qrels entry of each retrieved document that is judged.

    A table of hashed (row, document) pairs leaves out nearly all documents that are not judged; those that remain are
    compared exactly.
    """
    count, depth = run.ids.shape
    bits = max(10, (32 * len(judged.rows)).bit_length())
    table = np.zeros(1 << bits, dtype=bool)
    shift = np.uint64(64 - bits)
    table[_hash(judged.documents, judged.rows, shift)] = True
    maybe = table[_hash(run.ids, np.arange(count)[:, None], shift)]  # (B, k)
    if run.valid is not None:
        maybe &= run.valid
    at = np.flatnonzero(maybe)
    rows, places = at // depth, at % depth
    ids = run.ids[rows, places].astype(np.int64)
    documents = judged.documents
    if count * (int(documents.max(initial=0)) + 1) >= 1 << 62:  # ids too large to be joined with rows as they are
        vocabulary, documents = np.unique(documents, return_inverse=True)
        ids_found = np.searchsorted(vocabulary, ids)
    else:
        ids_found = ids
    width = int(documents.max(initial=0)) + 1
    pairs = judged.rows * width + documents  # (J,) ascending: one number for each judged (query, document)
    wanted = rows * width + np.minimum(ids_found, width - 1)
    slot = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    match = (judged.documents[slot] == ids) & (judged.rows[slot] == rows) if len(pairs) else np.zeros(0, dtype=bool)
    entry = slot[match]
    if (np.bincount(entry) > 1).any():
        raise DuplicateIdError("document_ids: a judged document was retrieved twice for one query; drop repeats")
    return rows[match], places[match], entry


def _hash(ids: NDArray[np.integer[Any]], rows: NDArray[np.int64], shift: np.uint64) -> NDArray[np.uint64]:
    mixed = ids.astype(np.uint64)
    mixed += rows.astype(np.uint64) << np.uint64(40)
    mixed *= _SPREAD
    mixed >>= shift
    return mixed


def _bounds(equal: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last place of the tie that each place belongs to, (B, k) each."""
    count, gaps = equal.shape
    places = np.arange(gaps + 1)
    start = np.zeros((count, gaps + 1), dtype=np.int64)
    start[:, 1:] = np.where(equal, 0, places[1:])
    end = np.full((count, gaps + 1), gaps, dtype=np.int64)
    end[:, :-1] = np.where(equal, gaps, places[:-1])
    return np.maximum.accumulate(start, axis=1), np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]


def _larger_id_first(
    ids: NDArray[np.integer[Any]],
    rows: NDArray[np.int64],
    above: NDArray[np.int64],
    tied: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How many documents of the same score have a larger id."""
    among = np.flatnonzero(tied > 1)
    sizes = tied[among]
    hit = np.repeat(among, sizes)  # one entry for each document of each tie
    nth = np.arange(len(hit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    larger = ids[rows[hit], above[hit] + nth] > ids[rows[hit], places[hit]]
    return np.bincount(hit, larger, minlength=len(rows)).astype(np.int64)


def _checked_self_ids(self_ids: NDArray[Any] | None, queries: int) -> NDArray[np.int64] | None:
    if self_ids is None:
        return None
    own = np.asarray(self_ids)
    if own.shape != (queries,) or own.dtype.kind not in "iu":
        raise InputError(f"self_ids has shape {own.shape} and type {own.dtype}; it must hold {queries} integers")
    return own.astype(np.int64)


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

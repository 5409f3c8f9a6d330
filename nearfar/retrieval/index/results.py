"""What a search returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.data.documents import Document
from nearfar.retrieval.index.vectors import Float32

ObjectArray = npt.NDArray[np.object_]
Rows = npt.NDArray[np.int64]


class Hit(NamedTuple):
    """One answer: its id, its score (larger is better) and its document, if the index holds documents."""

    id: str
    score: float
    document: Document | None


@dataclass(frozen=True)
class SearchResult:
    """The best k answers of each of Q queries; iterating gives a list of `Hit` for each query.

    Args:
        ids: (Q, k) object array of strings, best first; None where there are fewer than k answers.
        scores: (Q, k) float32, larger is better; -inf where there are fewer than k answers.
        counts: (Q,) int64, how many answers each query has.

    Example:
        >>> import numpy as np
        >>> result = SearchResult(np.array([["a", None]], dtype=object),
        ...                       np.array([[0.5, -np.inf]], dtype=np.float32), np.array([1]))
        >>> [hit.id for hit in result[0]]
        ['a']
    """

    ids: ObjectArray
    scores: Float32
    counts: Rows
    _rows: Rows | None = field(default=None, repr=False, compare=False)
    _document: Callable[[int], Document | None] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[query] for query in range(len(self)))

    def __getitem__(self, query: int) -> list[Hit]:
        """The hits of one query, best first; documents are read from the disk here."""
        count = range(int(self.counts[query]))
        return [Hit(self.ids[query, i], float(self.scores[query, i]), self._read(query, i)) for i in count]

    def _read(self, query: int, rank: int) -> Document | None:
        if self._document is None or self._rows is None:
            return None
        return self._document(int(self._rows[query, rank]))


def rank(scores: Float32, rows: Rows, k: int, ids: ObjectArray) -> tuple[Float32, Rows]:
    """Sort candidates by score, larger first, and equal scores by id; keep k and pad with -inf and -1.

    Args:
        scores: (Q, C) candidates; -inf where `rows` is -1.
        rows: (Q, C) row numbers; -1 is no candidate.
        k: columns of the result.
        ids: (n,) the id of each row.
    """
    order = np.argsort(-scores, axis=1, kind="stable")  # (Q, C)
    scores = np.take_along_axis(scores, order, axis=1)
    rows = np.take_along_axis(rows, order, axis=1)
    tied = ((scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1)  # (Q,)
    for query in np.flatnonzero(tied):
        _order_ties(scores[query], rows[query], ids)
    missing = k - scores.shape[1]
    if missing > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)  # (Q, k)
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(rows[:, :k])


def _order_ties(scores: Float32, rows: Rows, ids: ObjectArray) -> None:
    """Put the rows of each run of equal scores in the order of their ids, in place."""
    found = int((rows >= 0).sum())
    bounds = np.flatnonzero(np.diff(scores[:found])) + 1
    for run in np.split(np.arange(found), bounds):
        if len(run) > 1:
            rows[run] = sorted(rows[run], key=lambda row: ids[row])

"""Scores of a run of dicts as sortable integers, among which a binary search finds ranks and ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.ranks import refuse_nan, refuse_unsorted


@dataclass(frozen=True)
class ScoreKeys:
    """The scores of Q rankings, flat, row after row.

    Attributes:
        start: int64 (Q + 1,), row i holds the documents ``start[i]:start[i + 1]``.
        keys: uint64 (n,), row in the upper 32 bits, descending float32 score in the lower: ascending keys are
            the ranking, and equal keys are ties.
        sorted_keys: the same, ascending.
    """

    start: NDArray[np.int64]
    keys: NDArray[np.uint64]
    sorted_keys: NDArray[np.uint64]

    def find(
        self, rows: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """Documents with a higher score, documents with the same score, and key, of documents by row and score."""
        wanted = _keys(rows, scores)
        ahead = np.searchsorted(self.sorted_keys, wanted, side="left")
        tied = np.searchsorted(self.sorted_keys, wanted, side="right") - ahead
        return ahead - self.start[rows], tied, wanted

    def tied_documents(self) -> NDArray[np.int64]:
        """How many documents of each row share their score with another, int64 (Q,)."""
        queries = len(self.start) - 1
        same = self.sorted_keys[1:] == self.sorted_keys[:-1]
        if not same.any():
            return np.zeros(queries, dtype=np.int64)
        tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
        return np.bincount((self.sorted_keys[tied] >> np.uint64(32)).astype(np.int64), minlength=queries)


def score_keys(names: list[str], lengths: NDArray[np.int64], scores: NDArray[np.float64], ties: str) -> ScoreKeys:
    """Check the scores of Q rankings and make their keys.

    Args:
        names: Q query ids.
        lengths: (Q,) documents of each row.
        scores: (n,) row after row.
        ties: the tie rule; under "rank" the scores must descend within each row.
    """
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(np.arange(len(names)), lengths)
    if np.isnan(scores.min(initial=0.0)):  # a minimum is NaN as soon as one score is
        raise refuse_nan(names[rows[np.argmax(np.isnan(scores))]])
    if ties == "rank":
        rises = (scores[1:] > scores[:-1]) & (rows[1:] == rows[:-1])
        if rises.any():
            raise refuse_unsorted(names[rows[np.argmax(rises)]])
    keys = _keys(rows, scores)
    ascending = bool((keys[1:] >= keys[:-1]).all())
    return ScoreKeys(start, keys, keys if ascending else np.sort(keys))


def _keys(rows: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers that ascend with the row, then as the scores, held as float32, descend."""
    with np.errstate(over="ignore"):  # beyond float32 a score becomes infinite, as in trec_eval
        negated = scores.astype(np.float32)
    np.subtract(np.float32(0), negated, out=negated)  # both zeros become 0.0
    bits = negated.view(np.int32)
    # A float's bits ascend with it once negative ones are inverted and the sign of the others is set.
    flips = (bits >> np.int32(31)) | np.int32(-(1 << 31))
    keys: NDArray[np.uint64] = rows.astype(np.uint64) << np.uint64(32)
    keys |= (bits ^ flips).view(np.uint32)
    return keys

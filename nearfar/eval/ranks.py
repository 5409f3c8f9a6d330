"""Ranks of the judged documents of a run, found by binary search among sortable score keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.metrics import JudgedRanks

TIE_RULES = ("trec", "rank")


@dataclass(frozen=True)
class Retrieved:
    """The scores of Q rankings, flat, row after row.

    Attributes:
        names: Q query ids.
        start: int64 (Q + 1,), row i holds the documents ``start[i]:start[i + 1]``.
        keys: uint64 (n,), row in the upper 32 bits, descending float32 score in the lower: ascending keys are
            the ranking, and equal keys are ties.
        sorted_keys: the same, ascending.
    """

    names: list[str]
    start: NDArray[np.int64]
    keys: NDArray[np.uint64]
    sorted_keys: NDArray[np.uint64]

    def ranks(
        self, rows: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
        """Rank ahead of all ties (from 1), key, and whether tied, for documents given by row and score."""
        wanted = _keys(rows, scores)
        ahead = np.searchsorted(self.sorted_keys, wanted, side="left")
        tied = np.searchsorted(self.sorted_keys, wanted, side="right") - ahead > 1
        return ahead - self.start[rows] + 1, wanted, tied


@dataclass(frozen=True)
class RankedRun:
    """A run placed against its qrels: everything but the metrics."""

    query_ids: list[str]
    missing: list[str]
    without_relevant: list[str]
    judged: JudgedRanks
    tie_rate: float
    retrieved: int


def check_options(relevance_level: int, ties: str) -> None:
    """Refuse a level below 1 or an unknown tie rule."""
    if ties not in TIE_RULES:
        raise UnknownNameError("tie rule", ties, TIE_RULES)
    if relevance_level < 1:
        raise InputError(f"relevance_level is {relevance_level}; it must be at least 1")


def retrieved_scores(names: list[str], lengths: NDArray[np.int64], scores: NDArray[np.float64], ties: str) -> Retrieved:
    """Check the scores of Q rankings and make their keys.

    Args:
        names: Q query ids.
        lengths: (Q,) documents of each row.
        scores: (n,) row after row.
        ties: the tie rule; under "rank" the scores must descend within each row.
    """
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(np.arange(len(names)), lengths)
    broken = np.isnan(scores)
    if broken.any():
        raise InputError(f"query {names[rows[np.argmax(broken)]]!r} has a score that is NaN")
    if ties == "rank":
        rises = (scores[1:] > scores[:-1]) & (rows[1:] == rows[:-1])
        if rises.any():
            name = names[rows[np.argmax(rises)]]
            raise InputError(
                f'ties="rank" keeps the order of the run, but query {name!r} is not by descending score; '
                'sort it or use ties="trec"'
            )
    keys = _keys(rows, scores)
    ascending = bool((keys[1:] >= keys[:-1]).all())
    return Retrieved(names, start, keys, keys if ascending else np.sort(keys))


def _keys(rows: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers that ascend with the row, then as the scores, held as float32, descend."""
    with np.errstate(over="ignore"):  # beyond float32 a score becomes infinite, as in trec_eval
        negated = (-scores).astype(np.float32) + np.float32(0)  # adding zero turns -0.0 into 0.0
    bits = negated.view(np.uint32)
    sign = np.uint32(1 << 31)
    descending = np.where(bits & sign, ~bits, bits | sign).astype(np.uint64)
    return descending | rows.astype(np.uint64) << np.uint64(32)


def place(
    run: Retrieved,
    hit_rows: NDArray[np.int64],
    hit_ranks: NDArray[np.int64],
    hit_grades: NDArray[np.int64],
    judged_rows: NDArray[np.int64],
    judged_grades: NDArray[np.int64],
    relevance_level: int,
) -> RankedRun:
    """Leave out queries without a relevant document and number the rest anew.

    Args:
        run: the Q rankings.
        hit_rows: (H,) row of each judged document that was retrieved.
        hit_ranks: (H,) its rank.
        hit_grades: (H,) its grade.
        judged_rows: (J,) row of each judged document.
        judged_grades: (J,) its grade.
        relevance_level: smallest grade that counts as relevant.
    """
    queries = len(run.names)
    relevant = np.bincount(judged_rows[judged_grades >= relevance_level], minlength=queries)
    scored = relevant > 0  # (Q,)
    if not scored.any():
        raise InputError(f"no query of the qrels has a document of grade {relevance_level} or more")
    renumbered = np.cumsum(scored) - 1

    keep = (hit_grades > 0) & scored[hit_rows]
    rows, ranks, grades = renumbered[hit_rows[keep]], hit_ranks[keep], hit_grades[keep]
    order = np.lexsort((ranks, rows))
    ideal = (judged_grades > 0) & scored[judged_rows]
    ideal_rows, ideal_grades = renumbered[judged_rows[ideal]], judged_grades[ideal]
    ideal_order = np.lexsort((-ideal_grades, ideal_rows))
    judged = JudgedRanks(
        rows=rows[order],
        ranks=ranks[order],
        grades=grades[order],
        ideal_rows=ideal_rows[ideal_order],
        ideal_grades=ideal_grades[ideal_order],
        relevant=relevant[scored],
        level=relevance_level,
    )
    lengths = np.diff(run.start)
    retrieved = int(lengths[scored].sum())
    return RankedRun(
        query_ids=_pick(run.names, scored),
        missing=_pick(run.names, scored & (lengths == 0)),
        without_relevant=_pick(run.names, ~scored),
        judged=judged,
        tie_rate=_tied(run.sorted_keys, scored) / retrieved if retrieved else 0.0,
        retrieved=retrieved,
    )


def _tied(sorted_keys: NDArray[np.uint64], scored: NDArray[np.bool_]) -> int:
    """How many documents of the scored rows share their score with a neighbour."""
    same = sorted_keys[1:] == sorted_keys[:-1]
    if not same.any():
        return 0
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    rows = (sorted_keys[tied] >> np.uint64(32)).astype(np.int64)
    return int(scored[rows].sum())


def _pick(names: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [names[row] for row in np.flatnonzero(mask).tolist()]

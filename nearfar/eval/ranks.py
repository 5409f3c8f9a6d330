"""Where a run placed its judged documents, and how documents of equal score are ordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.metrics import JudgedRanks

TIE_RULES = ("trec", "rank", "expected", "pessimistic")


@dataclass(frozen=True)
class Hits:
    """Retrieved documents that are judged.

    Attributes:
        rows: int64 (H,), row of the query.
        above: int64 (H,), documents of the query with a higher score.
        tied: int64 (H,), documents of the query with this score, itself included.
        within: int64 (H,), place from 0 among those, by the tie rule; ignored by "expected" and "pessimistic".
        grades: int64 (H,).
    """

    rows: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    within: NDArray[np.int64]
    grades: NDArray[np.int64]


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


def refuse_nan(name: str) -> InputError:
    """The error for a query whose scores hold NaN."""
    return InputError(f"query {name!r} has a score that is NaN")


def refuse_unsorted(name: str) -> InputError:
    """The error for a query that ties="rank" cannot take."""
    return InputError(
        f'ties="rank" keeps the order of the run, but query {name!r} is not by descending score; '
        'sort it or use ties="trec"'
    )


def place(
    names: Sequence[str],
    lengths: NDArray[np.int64],
    tied_documents: NDArray[np.int64],
    hits: Hits,
    judged_rows: NDArray[np.int64],
    judged_grades: NDArray[np.int64],
    relevance_level: int,
    ties: str,
) -> RankedRun:
    """Leave out queries without a relevant document, number the rest anew, and apply the tie rule.

    Args:
        names: Q query ids.
        lengths: (Q,) documents retrieved for each.
        tied_documents: (Q,) how many of them share their score with another.
        hits: the judged ones among them.
        judged_rows: (J,) row of each judged document, ascending.
        judged_grades: (J,) its grade.
        relevance_level: smallest grade that counts as relevant.
        ties: the tie rule.
    """
    relevant = np.bincount(judged_rows[judged_grades >= relevance_level], minlength=len(names))
    scored = relevant > 0  # (Q,)
    if not scored.any():
        raise InputError(f"no query of the qrels has a document of grade {relevance_level} or more")
    ranks = hits.above + 1 + _within(hits, ties)
    # One number a document sorts faster than two keys.
    depth = int(lengths.max()) + 1
    order = np.argsort(hits.rows * depth + ranks, kind="stable")
    rows, ranks, grades = hits.rows[order], ranks[order], hits.grades[order]
    tied = hits.tied[order] if ties == "expected" else None
    if not scored.all():
        kept, renumbered = scored[rows], np.cumsum(scored) - 1
        rows, ranks, grades = renumbered[rows[kept]], ranks[kept], grades[kept]
        tied = tied[kept] if tied is not None else None
        kept = scored[judged_rows]
        judged_rows, judged_grades = renumbered[judged_rows[kept]], judged_grades[kept]
    retrieved = int(lengths[scored].sum())
    return RankedRun(
        query_ids=_pick(names, scored),
        missing=_pick(names, scored & (lengths == 0)),
        without_relevant=_pick(names, ~scored),
        judged=JudgedRanks(rows, ranks, grades, judged_rows, judged_grades, lengths[scored], relevance_level, tied),
        tie_rate=float(tied_documents[scored].sum() / retrieved) if retrieved else 0.0,
        retrieved=retrieved,
    )


def _within(hits: Hits, ties: str) -> NDArray[np.int64]:
    """Place from 0 of each hit among the documents of its score."""
    if ties == "expected":
        return np.zeros_like(hits.rows)
    if ties != "pessimistic":
        return hits.within
    # Unjudged documents first, then the judged ones, the best last.
    order = np.lexsort((hits.grades, hits.above, hits.rows))
    rows, above = hits.rows[order], hits.above[order]
    starts = np.ones(len(rows), dtype=bool)
    starts[1:] = (rows[1:] != rows[:-1]) | (above[1:] != above[:-1])
    group = np.cumsum(starts) - 1
    sizes = np.bincount(group)
    nth = np.arange(len(rows)) - np.flatnonzero(starts)[group]
    within = np.empty_like(hits.rows)
    within[order] = hits.tied[order] - sizes[group] + nth
    return within


def _pick(names: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [names[row] for row in np.flatnonzero(mask).tolist()]

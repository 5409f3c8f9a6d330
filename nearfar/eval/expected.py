"""Metrics under ties="expected": their mean over all orders of the documents that share a score.

The means have closed forms, after McSherry and Najork, "Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores", ECIR 2008: within a tie every document is equally likely at each rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.metrics import JudgedRanks, Metric, depth_within, gains, ideal_dcg, sum_by_row


@dataclass(frozen=True)
class _Ties:
    """Groups of documents of one score that hold a judged document; a document without equals is a group of one.

    Attributes:
        rows: int64 (T,), query of each group.
        above: int64 (T,), documents of the query that rank above the group.
        sizes: int64 (T,), documents of the group.
        of_hit: int64 (H,), group of each judged document.
    """

    rows: NDArray[np.int64]
    above: NDArray[np.int64]
    sizes: NDArray[np.int64]
    of_hit: NDArray[np.int64]

    def total(self, values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sums of a value of the judged documents over each group, (H,) -> (T,)."""
        return np.bincount(self.of_hit, values, minlength=len(self.rows)).astype(np.float64)

    def ends(self, cutoff: int | NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ranks before the first and at the last place of each group, both cut off."""
        last = self.above + self.sizes
        return (self.above, last) if cutoff is None else (np.minimum(self.above, cutoff), np.minimum(last, cutoff))


def compute_expected(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """The expected value for each query, float64 (Q,).

    Raises:
        InputError: Bpref or ERR, whose expectations have no closed form.
    """
    if metric.base in ("Bpref", "ERR"):
        raise InputError(
            f'{metric.name} has no closed form under ties="expected"; leave it out, or use ties="pessimistic" or "trec"'
        )
    ties = _groups(judged)
    relevant = ties.total(judged.grades >= judged.level)  # (T,)
    if metric.base in ("RR", "Success"):
        return _first_relevant(metric, judged, ties, relevant)
    if metric.base == "AP":
        return _average_precision(metric, judged, ties, relevant)
    if metric.base == "RBP":
        first, last = ties.ends(metric.cutoff)
        persistence = float(metric.parameter or 0.0)
        share = relevant / ties.sizes
        return sum_by_row(ties.rows, share * (persistence**first - persistence**last), judged)
    if metric.base.startswith("nDCG"):
        first, last = ties.ends(metric.cutoff)
        discount = _prefix(1.0 / np.log2(np.arange(1, last.max(initial=0) + 1) + 1.0))
        worth = ties.total(gains(metric, judged.grades)) / ties.sizes
        return sum_by_row(ties.rows, worth * (discount[last] - discount[first]), judged) / ideal_dcg(metric, judged)
    if metric.base == "Judged":
        return _found(judged, ties, ties.total(np.ones(len(judged.rows))), metric.cutoff) / depth_within(metric, judged)
    cutoff = judged.relevant[ties.rows] if metric.base == "Rprec" else metric.cutoff
    found = _found(judged, ties, relevant, cutoff)
    return found / (float(metric.cutoff or 1) if metric.base == "P" else judged.relevant)


def _groups(judged: JudgedRanks) -> _Ties:
    assert judged.tied is not None
    rows, above = judged.rows, judged.ranks - 1
    starts = np.ones(len(rows), dtype=bool)
    starts[1:] = (rows[1:] != rows[:-1]) | (above[1:] != above[:-1])
    return _Ties(rows[starts], above[starts], judged.tied[starts], np.cumsum(starts) - 1)


def _found(
    judged: JudgedRanks, ties: _Ties, counts: NDArray[np.float64], cutoff: int | NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Expected number within the cut-off of documents of which each group holds `counts`, (Q,)."""
    first, last = ties.ends(cutoff)
    return sum_by_row(ties.rows, counts * (last - first) / ties.sizes, judged)


def _average_precision(
    metric: Metric, judged: JudgedRanks, ties: _Ties, relevant: NDArray[np.float64]
) -> NDArray[np.float64]:
    first, last = ties.ends(metric.cutoff)
    running = np.concatenate([[0.0], np.cumsum(relevant)])
    earlier = running[:-1] - running[np.searchsorted(ties.rows, ties.rows)]  # relevant in the groups above, (T,)
    # A relevant document at rank i has, of the i - above - 1 before it in its group, this share relevant.
    share = (relevant - 1.0) / np.maximum(ties.sizes - 1, 1)
    harmonic = _prefix(1.0 / np.arange(1, last.max(initial=0) + 1))
    constant = earlier + 1.0 - share * (ties.above + 1.0)
    precision = constant * (harmonic[last] - harmonic[first]) + share * (last - first)
    return sum_by_row(ties.rows, relevant / ties.sizes * precision, judged) / judged.relevant


def _first_relevant(
    metric: Metric, judged: JudgedRanks, ties: _Ties, relevant: NDArray[np.float64]
) -> NDArray[np.float64]:
    """RR and Success depend on the first relevant document, which lies in the first group that holds any."""
    values = np.zeros(len(judged.retrieved))
    held = np.flatnonzero(relevant > 0)
    rows, first = np.unique(ties.rows[held], return_index=True)
    at = held[first]
    above, size, count = ties.above[at], ties.sizes[at].astype(np.float64), relevant[at]
    chance = count / size  # that the first relevant document is the step-th of its group
    step = 1
    while len(rows):
        rank = above + step
        worth = np.ones(len(rows)) if metric.base == "Success" else 1.0 / rank
        values[rows] += chance * worth if metric.cutoff is None else np.where(rank <= metric.cutoff, chance * worth, 0)
        left = size - count - step + 1  # of the others, those that may still come first
        more = left > 0 if metric.cutoff is None else (left > 0) & (rank < metric.cutoff)
        rows, above, size, count = rows[more], above[more], size[more], count[more]
        chance = chance[more] * left[more] / (size - step)
        step += 1
    return values


def _prefix(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])

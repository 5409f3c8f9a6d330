"""Ranking metrics by name, computed from the ranks of the judged documents alone.

Names follow the style of ir-measures: ``R@10``, ``Success@10``, ``RR``, ``RR@10``, ``nDCG@10``, ``AP``,
``P@10``, ``Rprec``. Values follow trec_eval (linear gains; documents that were not retrieved count in every
denominator).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError

DEFAULT_METRICS = ("R@1", "R@10", "R@100", "Success@10", "RR", "nDCG@10", "AP")

# Whether a cut-off is needed ("always"), allowed ("maybe") or refused ("never").
_CUTOFF = {
    "R": "always",
    "Success": "always",
    "P": "always",
    "RR": "maybe",
    "nDCG": "maybe",
    "nDCG(gain=exp)": "maybe",
    "AP": "maybe",
    "Rprec": "never",
}
# What other libraries call them, to suggest the right name.
_ELSEWHERE = {
    "recall": "R",
    "hit": "Success",
    "accuracy": "Success",
    "mrr": "RR",
    "map": "AP",
    "precision": "P",
}
_LARGEST_EXPONENT = 62
_GRAMMAR = re.compile(r"(?P<base>[A-Za-z]+(?:\(gain=exp\))?)(?:@(?P<cutoff>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Metric:
    """A parsed metric name; `cutoff` is None for the whole ranking."""

    name: str
    base: str
    cutoff: int | None


@dataclass(frozen=True)
class JudgedRanks:
    """Where Q rankings placed their judged documents; all that any metric needs.

    Attributes:
        rows: int64 (H,), query of each retrieved document of positive grade, ascending.
        ranks: int64 (H,), its 1-based rank, ascending within a row.
        grades: int64 (H,), its grade.
        ideal_rows: int64 (J,), query of each document of positive grade in the qrels, ascending.
        ideal_grades: int64 (J,), its grade, descending within a row.
        relevant: int64 (Q,), documents of the query at or above `level`; never zero.
        level: smallest grade that counts as relevant.
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    grades: NDArray[np.int64]
    ideal_rows: NDArray[np.int64]
    ideal_grades: NDArray[np.int64]
    relevant: NDArray[np.int64]
    level: int

    def only_relevant(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and ranks of the retrieved documents at or above `level`."""
        keep = self.grades >= self.level
        return self.rows[keep], self.ranks[keep]


def parse_metric(name: str) -> Metric:
    """Read a metric name.

    Raises:
        UnknownNameError: the name is not of the grammar; near names are suggested.

    >>> parse_metric("nDCG@10")
    Metric(name='nDCG@10', base='nDCG', cutoff=10)
    """
    match = _GRAMMAR.fullmatch(name)
    base, cutoff = (match["base"], match["cutoff"]) if match else (name.partition("@")[0], None)
    rule = _CUTOFF.get(base) if match else None
    if rule is None or (rule == "always" and cutoff is None) or (rule == "never" and cutoff is not None):
        alias = _ELSEWHERE.get(base.lower())
        known = [_example(alias, cutoff)] if alias else [_example(known, cutoff) for known in _CUTOFF]
        raise UnknownNameError("metric", name, known)
    return Metric(name, base, int(cutoff) if cutoff else None)


def _example(base: str, cutoff: str | None) -> str:
    if _CUTOFF[base] == "never" or (_CUTOFF[base] == "maybe" and cutoff is None):
        return base
    return f"{base}@{cutoff or 10}"


def compute(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """The metric's value for each query, float64 (Q,)."""
    if metric.base.startswith("nDCG"):
        return _ndcg(judged, metric.cutoff, exponential=metric.base != "nDCG")
    rows, ranks = judged.only_relevant()
    queries = len(judged.relevant)
    if metric.base == "Rprec":
        within = ranks <= judged.relevant[rows]
    elif metric.cutoff is not None:
        within = ranks <= metric.cutoff
    else:
        within = np.ones(len(ranks), dtype=bool)
    rows, ranks = rows[within], ranks[within]
    found = np.bincount(rows, minlength=queries).astype(np.float64)  # (H',) -> (Q,)
    if metric.base in ("R", "Rprec"):
        return found / judged.relevant
    if metric.base == "P":
        return found / float(metric.cutoff or 1)
    if metric.base == "Success":
        return (found > 0).astype(np.float64)
    nth = _position_in_row(rows)
    if metric.base == "RR":
        first = nth == 1
        return _sum_by_row(rows[first], 1.0 / ranks[first], queries)
    return _sum_by_row(rows, nth / ranks, queries) / judged.relevant


def _ndcg(judged: JudgedRanks, cutoff: int | None, exponential: bool) -> NDArray[np.float64]:
    actual = _dcg(judged.rows, judged.ranks, judged.grades, cutoff, exponential, len(judged.relevant))
    ideal_ranks = _position_in_row(judged.ideal_rows)
    ideal = _dcg(judged.ideal_rows, ideal_ranks, judged.ideal_grades, cutoff, exponential, len(judged.relevant))
    return actual / ideal


def _dcg(
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    grades: NDArray[np.int64],
    cutoff: int | None,
    exponential: bool,
    queries: int,
) -> NDArray[np.float64]:
    if exponential and grades.max(initial=0) > _LARGEST_EXPONENT:
        raise InputError(f"nDCG(gain=exp): a grade of {grades.max()} is too large for a gain of 2^grade")
    gains = np.exp2(grades) - 1.0 if exponential else grades.astype(np.float64)
    discounted = gains / np.log2(ranks + 1.0)
    if cutoff is not None:
        discounted = np.where(ranks <= cutoff, discounted, 0.0)
    return _sum_by_row(rows, discounted, queries)


def _sum_by_row(rows: NDArray[np.int64], values: NDArray[np.float64], queries: int) -> NDArray[np.float64]:
    # Without any value bincount returns integers.
    return np.bincount(rows, values, minlength=queries).astype(np.float64)


def _position_in_row(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """1, 2, 3 ... within each run of equal values of an ascending array."""
    first = np.searchsorted(rows, rows, side="left")
    return np.arange(1, len(rows) + 1, dtype=np.int64) - first

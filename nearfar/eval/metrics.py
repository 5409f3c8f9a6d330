"""Ranking metrics by name, computed from the ranks of the judged documents alone.

Names follow ir-measures: ``R@10``, ``Success@10``, ``RR``, ``RR@10``, ``nDCG@10``, ``AP``, ``P@10``, ``Rprec``,
``Bpref``, ``ERR@10``, ``RBP(p=0.8)``, ``Judged@10``. Values follow trec_eval (linear gains; documents that were not
retrieved count in every denominator).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

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
    "Bpref": "never",
    "ERR": "maybe",
    "RBP": "maybe",
    "Judged": "maybe",
}
# The one parameter that a metric takes, and its value where the name gives none.
_PARAMETER = {"RBP": ("p", 0.8), "ERR": ("max_rel", 4.0)}
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
_GRAMMAR = re.compile(
    r"(?P<base>[A-Za-z]+(?:\(gain=exp\))?)(?:\((?P<key>[a-z_]+)=(?P<value>[0-9]*\.?[0-9]+)\))?"
    r"(?:@(?P<cutoff>[1-9][0-9]*))?"
)


@dataclass(frozen=True)
class Metric:
    """A parsed metric name; `cutoff` is None for the whole ranking, `parameter` is p of RBP or max_rel of ERR."""

    name: str
    base: str
    cutoff: int | None
    parameter: float | None = None


@dataclass(frozen=True)
class JudgedRanks:
    """Where Q rankings placed their judged documents; all that any metric needs.

    Attributes:
        rows: int64 (H,), query of each retrieved document that is judged, ascending.
        ranks: int64 (H,), its 1-based rank, ascending within a row; for documents of `tied` the first rank of their
            tie.
        grades: int64 (H,), its grade.
        judged_rows: int64 (J,), query of each document in the qrels, ascending.
        judged_grades: int64 (J,), its grade.
        retrieved: int64 (Q,), documents that were retrieved.
        level: smallest grade that counts as relevant.
        tied: int64 (H,), how many documents share the score of each, itself included, or None where ties were
            resolved and `ranks` are final.
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    grades: NDArray[np.int64]
    judged_rows: NDArray[np.int64]
    judged_grades: NDArray[np.int64]
    retrieved: NDArray[np.int64]
    level: int
    tied: NDArray[np.int64] | None = None

    @cached_property
    def relevant(self) -> NDArray[np.int64]:
        """Documents of each query at or above `level`, int64 (Q,); never zero."""
        at_level = self.judged_grades >= self.level
        return np.bincount(self.judged_rows[at_level], minlength=len(self.retrieved))

    @cached_property
    def relevant_hits(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, ranks, and 1, 2, 3 ... within the row, of the retrieved documents at or above `level`."""
        keep = self.grades >= self.level
        rows, ranks = (self.rows, self.ranks) if keep.all() else (self.rows[keep], self.ranks[keep])
        return rows, ranks, position_in_row(rows)

    @cached_property
    def ideal(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, ranks and grades of the judged documents of positive grade, in the best order there is."""
        positive = self.judged_grades > 0
        rows, grades = self.judged_rows[positive], self.judged_grades[positive]
        grades = grades[np.lexsort((-grades, rows))]  # rows ascend already
        return rows, position_in_row(rows), grades


def parse_metric(name: str) -> Metric:
    """Read a metric name.

    Raises:
        UnknownNameError: the name is not of the grammar; near names are suggested.
        InputError: p of RBP is not between 0 and 1, or max_rel of ERR is no integer from 1 to 62.

    >>> parse_metric("nDCG@10")
    Metric(name='nDCG@10', base='nDCG', cutoff=10, parameter=None)
    >>> parse_metric("RBP(p=0.95)").parameter
    0.95
    """
    match = _GRAMMAR.fullmatch(name)
    base, cutoff = (match["base"], match["cutoff"]) if match else (name.partition("@")[0], None)
    rule = _CUTOFF.get(base) if match else None
    parameter, default = _PARAMETER.get(base, (None, None))
    known_key = match is not None and match["key"] in (None, parameter)
    if rule is None or (rule == "always" and cutoff is None) or (rule == "never" and cutoff) or not known_key:
        alias = _ELSEWHERE.get(base.lower())
        known = [_example(alias, cutoff)] if alias else [_example(known, cutoff) for known in _CUTOFF]
        raise UnknownNameError("metric", name, known)
    value = float(match["value"]) if match and match["key"] else default
    if base == "RBP" and not 0 < (value or 0) < 1:
        raise InputError(f"metric {name!r}: the persistence p must be above 0 and below 1")
    if base == "ERR" and value not in range(1, _LARGEST_EXPONENT + 1):
        raise InputError(f"metric {name!r}: max_rel, the largest grade, must be an integer from 1 to 62")
    return Metric(name, base, int(cutoff) if cutoff else None, value)


def _example(base: str, cutoff: str | None) -> str:
    if _CUTOFF[base] == "never" or (_CUTOFF[base] == "maybe" and cutoff is None):
        return base
    return f"{base}@{cutoff or 10}"


def compute(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """The metric's value for each query, float64 (Q,)."""
    if judged.tied is not None:
        from nearfar.eval.expected import compute_expected

        return compute_expected(metric, judged)
    return _RULES[metric.base](metric, judged)


def _found(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """Relevant documents within the cut-off, float64 (Q,)."""
    rows, ranks, _ = judged.relevant_hits
    within = rows if metric.cutoff is None else rows[ranks <= metric.cutoff]
    return np.bincount(within, minlength=len(judged.retrieved)).astype(np.float64)  # (H',) -> (Q,)


def _recall(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    return _found(metric, judged) / judged.relevant


def _precision(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    return _found(metric, judged) / float(metric.cutoff or 1)


def _success(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    return (_found(metric, judged) > 0).astype(np.float64)


def _r_precision(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    rows, ranks, _ = judged.relevant_hits
    within = rows[ranks <= judged.relevant[rows]]
    return np.bincount(within, minlength=len(judged.retrieved)) / judged.relevant


def _reciprocal_rank(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    rows, ranks, nth = judged.relevant_hits
    first = nth == 1
    if metric.cutoff is not None:
        first &= ranks <= metric.cutoff
    values = np.zeros(len(judged.retrieved))
    values[rows[first]] = 1.0 / ranks[first]
    return values


def _average_precision(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    rows, ranks, nth = judged.relevant_hits
    precision = nth / ranks
    if metric.cutoff is not None:
        precision[ranks > metric.cutoff] = 0.0
    return sum_by_row(rows, precision, judged) / judged.relevant


def _bpref(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """Share of the relevant documents, each lowered by the judged non-relevant ones above it (Buckley, Voorhees 2004).

    Negative grades count as unjudged, as in trec_eval.
    """
    counted = judged.grades >= 0
    rows, irrelevant = judged.rows[counted], judged.grades[counted] < judged.level
    nonrelevant = (judged.judged_grades >= 0) & (judged.judged_grades < judged.level)
    limit = np.bincount(judged.judged_rows[nonrelevant], minlength=len(judged.retrieved))
    limit = np.minimum(limit, judged.relevant)  # (Q,)
    before = np.concatenate([[0], np.cumsum(irrelevant)])  # over all rows
    above = (before[:-1] - before[np.searchsorted(rows, rows)])[~irrelevant]
    rows = rows[~irrelevant]
    lost = np.minimum(above, limit[rows]) / np.maximum(limit[rows], 1)
    return sum_by_row(rows, 1.0 - lost, judged) / judged.relevant


def _expected_reciprocal_rank(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """A user stops at a document with the chance (2^grade - 1) / 2^max_rel (Chapelle et al. 2009)."""
    largest = int(metric.parameter or 0)
    if judged.judged_grades.max() > largest:
        raise InputError(
            f"{metric.name}: the qrels hold the grade {judged.judged_grades.max()}, and the largest is taken to be "
            f"{largest}; write ERR(max_rel={judged.judged_grades.max()})" + (f"@{metric.cutoff}" * bool(metric.cutoff))
        )
    keep = judged.grades > 0
    if metric.cutoff is not None:
        keep &= judged.ranks <= metric.cutoff
    rows, ranks = judged.rows[keep], judged.ranks[keep]
    stops = (np.exp2(judged.grades[keep]) - 1.0) / 2.0**largest  # (H',)
    nth = position_in_row(rows)
    values, reaches = np.zeros(len(judged.retrieved)), np.ones(len(judged.retrieved))
    for step in range(1, int(nth.max(initial=0)) + 1):
        at = nth == step
        row = rows[at]
        values[row] += reaches[row] * stops[at] / ranks[at]
        reaches[row] *= 1.0 - stops[at]
    return values


def _rank_biased_precision(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """A user goes on to the next document with the chance p (Moffat and Zobel 2008)."""
    persistence = float(metric.parameter or 0.0)
    rows, ranks, _ = judged.relevant_hits
    weights: NDArray[np.float64] = (1.0 - persistence) * np.power(persistence, ranks - 1.0)
    if metric.cutoff is not None:
        weights[ranks > metric.cutoff] = 0.0
    return sum_by_row(rows, weights, judged)


def _judged_share(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    rows = judged.rows if metric.cutoff is None else judged.rows[judged.ranks <= metric.cutoff]
    return np.bincount(rows, minlength=len(judged.retrieved)) / depth_within(metric, judged)


def _ndcg(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    positive = judged.grades > 0
    actual = _dcg(judged.rows[positive], judged.ranks[positive], judged.grades[positive], metric, judged)
    return actual / ideal_dcg(metric, judged)


_RULES: dict[str, Callable[[Metric, JudgedRanks], NDArray[np.float64]]] = {
    "R": _recall,
    "Success": _success,
    "P": _precision,
    "RR": _reciprocal_rank,
    "nDCG": _ndcg,
    "nDCG(gain=exp)": _ndcg,
    "AP": _average_precision,
    "Rprec": _r_precision,
    "Bpref": _bpref,
    "ERR": _expected_reciprocal_rank,
    "RBP": _rank_biased_precision,
    "Judged": _judged_share,
}


def depth_within(metric: Metric, judged: JudgedRanks) -> NDArray[np.int64]:
    """Documents retrieved within the cut-off, int64 (Q,), at least 1 to divide by."""
    depth = judged.retrieved if metric.cutoff is None else np.minimum(judged.retrieved, metric.cutoff)
    return np.maximum(depth, 1)


def ideal_dcg(metric: Metric, judged: JudgedRanks) -> NDArray[np.float64]:
    """Discounted gain of the best order of the judged documents, float64 (Q,)."""
    return _dcg(*judged.ideal, metric, judged)


def _dcg(
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    grades: NDArray[np.int64],
    metric: Metric,
    judged: JudgedRanks,
) -> NDArray[np.float64]:
    discounted = gains(metric, grades) / np.log2(ranks + 1.0)
    if metric.cutoff is not None:
        discounted[ranks > metric.cutoff] = 0.0
    return sum_by_row(rows, discounted, judged)


def gains(metric: Metric, grades: NDArray[np.int64]) -> NDArray[np.float64]:
    """What documents of these grades are worth to nDCG; nothing below grade 1."""
    positive = np.maximum(grades, 0)
    if metric.base == "nDCG":
        return positive.astype(np.float64)
    if positive.max(initial=0) > _LARGEST_EXPONENT:
        raise InputError(f"{metric.name}: a grade of {positive.max()} is too large for a gain of 2^grade")
    return np.exp2(positive) - 1.0


def sum_by_row(rows: NDArray[np.int64], values: NDArray[np.float64], judged: JudgedRanks) -> NDArray[np.float64]:
    """Sums over the entries of each query, (H,) -> (Q,)."""
    # Without any value bincount returns integers.
    return np.bincount(rows, values, minlength=len(judged.retrieved)).astype(np.float64)


def position_in_row(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """1, 2, 3 ... within each run of equal values of an ascending array."""
    counts = np.bincount(rows)
    return np.arange(1, len(rows) + 1, dtype=np.int64) - (np.cumsum(counts) - counts)[rows]

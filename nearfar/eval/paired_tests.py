"""Tests on paired differences: sign flips and Student's t, for queries or for clusters of them.

Runs are compared through sums over *units*: a unit is a query, or a cluster of queries that are not independent
of each other. Every statistic is linear in those sums, so what is drawn once serves all runs and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.student_t import two_sided_p

_BLOCK_BYTES = 16 << 20
# Sums of the same numbers in another order differ by rounding; such statistics are equal, not smaller.
_SAME = 1e-10


@dataclass(frozen=True)
class UnitSums:
    """Per-query values summed over the units that may be resampled.

    Attributes:
        sums: float64 (G, C), for each unit the sum of each column (one column a run and metric).
        sizes: int64 (G,), queries of each unit.
    """

    sums: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean over all queries, (C,)."""
        return np.asarray(self.sums.sum(axis=0) / self.sizes.sum())


@dataclass(frozen=True)
class FlipTest:
    """Outcome of the randomisation test for P pairs of columns.

    Attributes:
        p: float64 (P,), two-sided p-values.
        mid_p: float64 (P,), the same with only half of the chance of exactly what was observed.
        smallest: float64 (P,), the smallest p-value that the test could have given; half of it for `mid_p`.
    """

    p: NDArray[np.float64]
    mid_p: NDArray[np.float64]
    smallest: NDArray[np.float64]


@dataclass(frozen=True)
class TTest:
    """Outcome of the paired t test for P pairs of columns.

    Attributes:
        p: float64 (P,), two-sided p-values.
        standard_error: float64 (P,), of the mean difference.
        df: degrees of freedom, one less than the units.
    """

    p: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    df: int


def sum_over_units(values: NDArray[np.float64], codes: NDArray[np.int64]) -> UnitSums:
    """Sum per-query values (Q, C) over units; `codes` (Q,) numbers them 0 to G - 1 without a gap."""
    sizes = np.bincount(codes).astype(np.int64)  # (G,)
    if len(sizes) == len(codes):
        sums = np.empty_like(values)
        sums[codes] = values
        return UnitSums(sums, sizes)
    order = np.argsort(codes, kind="stable")
    return UnitSums(np.add.reduceat(values[order], np.cumsum(sizes) - sizes, axis=0), sizes)


def row_blocks(rows: int, columns: int) -> Iterator[int]:
    """Split `rows` rows of `columns` float64 numbers into blocks that fit the byte budget; yields their sizes."""
    block = max(1, _BLOCK_BYTES // (8 * columns))
    for first in range(0, rows, block):
        yield min(block, rows - first)


def randomisation_test(
    units: UnitSums, left: NDArray[np.int64], right: NDArray[np.int64], permutations: int, seed: int
) -> FlipTest:
    """Fisher's paired randomisation test of the mean difference of columns `left` and `right`.

    If two runs are alike, then which of the two a unit's values came from is a coin's toss: the sign of each
    difference may be flipped. All sign patterns are gone through when there are at most `permutations` of
    them (units without a difference do not count); else that many are drawn, and the observed one is
    counted in, which keeps the test valid.

    Args:
        units: sums over units.
        left: int64 (P,), column of the one run of each pair.
        right: int64 (P,), column of the other.
        permutations: how many sign patterns to draw.
        seed: of the draw. The same patterns serve all pairs.

    Returns:
        Two-sided p-values. `p` never finds more than its level of false differences. Where all differences are of one
        size, as with R@1, few values of p are possible, and it finds fewer: `mid_p` finds its level on average over
        the steps, and may exceed it by a little.

    Source: R. A. Fisher, The Design of Experiments, 1935; M. Smucker, J. Allan and B. Carterette, "A
        comparison of statistical significance tests for information retrieval evaluation", CIKM 2007; B.
        Phipson and G. Smyth, "Permutation p-values should never be zero", 2010; for mid_p H. O.
        Lancaster, "Significance tests in discrete distributions", JASA 56, 1961, and, for values of 0 and 1, M.
        Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic
        are better than exact conditional", BMC Medical Research Methodology 13, 2013.
    """
    p, mid_p = np.empty(len(left)), np.empty(len(left))
    smallest = np.full(len(left), 1 / (permutations + 1))
    drawn = []
    for pair, (a, b) in enumerate(zip(left, right, strict=True)):
        differences = units.sums[:, a] - units.sums[:, b]  # (G,)
        differences = differences[np.abs(differences) > _SAME]
        if len(differences) > math.log2(permutations):
            drawn.append(pair)
        else:
            p[pair], mid_p[pair] = _exact_p(differences)
            smallest[pair] = 2.0 ** min(0, 1 - len(differences))
    if drawn:
        p[drawn], mid_p[drawn] = _drawn_p(units.sums, left[drawn], right[drawn], permutations, seed)
    return FlipTest(p, mid_p, smallest)


def _exact_p(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The share of all sign patterns whose sum is as far from zero as the observed one, and its mid-p."""
    totals = np.zeros(1)
    for difference in differences:
        totals = np.concatenate([totals + difference, totals - difference])
    beyond = np.abs(totals) - abs(differences.sum())
    at_least, more = (float((beyond >= side * _tolerance(differences)).mean()) for side in (-1, 1))
    return at_least, (at_least + more) / 2


def _drawn_p(
    sums: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    permutations: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng([seed, 0])
    observed, tolerance = np.empty(len(left)), np.empty(len(left))
    for pair, (a, b) in enumerate(zip(left, right, strict=True)):
        differences = sums[:, a] - sums[:, b]
        observed[pair], tolerance[pair] = abs(differences.sum()), _tolerance(differences)
    total = sums.sum(axis=0)  # (C,)
    at_least, more = np.zeros(len(left), dtype=np.int64), np.zeros(len(left), dtype=np.int64)
    count = len(sums)
    width = -(-count // 64) * 8  # bytes a row: whole words, so that the blocks' size does not alter the draw
    for rows in row_blocks(permutations, count):
        bits = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
        flipped = np.unpackbits(bits, axis=1, count=count).astype(np.float64)  # (rows, G)
        totals = total - 2.0 * (flipped @ sums)  # (rows, G) @ (G, C) -> (rows, C)
        beyond = np.abs(totals[:, left] - totals[:, right]) - observed  # (rows, P)
        at_least += (beyond >= -tolerance).sum(axis=0)
        more += (beyond >= tolerance).sum(axis=0)
    # The observed pattern is one of those that are as extreme, and not more.
    p, above = (at_least + 1) / (permutations + 1), more / (permutations + 1)
    return np.asarray(p), np.asarray((p + above) / 2)


def _tolerance(differences: NDArray[np.float64]) -> float:
    return _SAME * max(1.0, float(np.abs(differences).sum()))


def paired_t_test(units: UnitSums, left: NDArray[np.int64], right: NDArray[np.int64]) -> TTest:
    """Student's paired t test of the mean difference of columns `left` and `right`.

    With one query a unit this is the textbook test. With clusters the standard error is the
    cluster-robust one, ``sqrt(G / (G - 1) * sum_c (S_c - n_c * mean)^2) / N`` for cluster sums S_c, on G - 1
    degrees of freedom. Where all differences are the same, p is 0, or 1 if they are zero.

    Args:
        units: sums over at least two units.
        left: int64 (P,), column of the one run of each pair.
        right: int64 (P,), column of the other.

    Returns:
        Two-sided p-values and standard errors.

    Source: "Student", "The probable error of a mean", Biometrika 6, 1908; for clusters A. C. Cameron and D.
        L. Miller, "A practitioner's guide to cluster-robust inference", Journal of Human Resources 50, 2015.
    """
    count = len(units.sums)
    means = units.means
    p, errors = np.empty(len(left)), np.empty(len(left))
    for pair, (a, b) in enumerate(zip(left, right, strict=True)):
        mean = means[a] - means[b]
        deviations = units.sums[:, a] - units.sums[:, b] - units.sizes * mean  # (G,)
        if np.abs(deviations).max() <= _SAME:
            errors[pair], p[pair] = 0.0, float(abs(mean) <= _SAME)
            continue
        errors[pair] = np.sqrt(count / (count - 1) * (deviations**2).sum()) / units.sizes.sum()
        p[pair] = two_sided_p(float(mean / errors[pair]), count - 1)
    return TTest(p, errors, count - 1)

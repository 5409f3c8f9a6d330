"""One walk over all pairs of a sample of rows: uniformity, k-occurrences and false-negative suspects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import ClassLabels, Floats

_BLOCK_BYTES = 32 << 20
_CLASS_SAMPLE = 300


@dataclass(frozen=True)
class FalseNegativeSuspect:
    """Two rows with different labels that look like a positive pair.

    Attributes:
        first: id of the one row.
        second: id of the other.
        labels: the two labels, in the same order.
        cosine: of the pair.
        typical: typical positive cosine of each label, None for a class of one sample.
    """

    first: str | int
    second: str | int
    labels: tuple[str | int, str | int]
    cosine: float
    typical: tuple[float | None, float | None]

    def named(self, ids: Sequence[str] | None) -> FalseNegativeSuspect:
        """The same with names in place of row numbers."""
        if ids is None or isinstance(self.first, str) or isinstance(self.second, str):
            return self
        return replace(self, first=ids[self.first], second=ids[self.second])


@dataclass(frozen=True)
class PairStatistics:
    """What the pairs of m sampled rows come to.

    Attributes:
        uniformity: log of the mean of exp(-2 d^2) over all pairs.
        occurrences: float64 (m,), how often each row is among the k nearest of the others.
        suspect_count: pairs that are false-negative suspects; 0 without labels.
        negative_pairs: pairs with different labels; 0 without labels.
        suspects: those that come nearest to, or furthest beyond, the stricter of both classes; rows by number.
    """

    uniformity: float
    occurrences: NDArray[np.float64]
    suspect_count: int
    negative_pairs: int
    suspects: list[FalseNegativeSuspect]


def measure_pairs(
    unit: Floats, rows: NDArray[np.int64], classes: ClassLabels | None, *, k: int, keep: int, seed: int
) -> PairStatistics:
    """Compare all pairs of the rows `rows` (m,) of `unit` (N, D), a block of 32 MiB of cosines at a time.

    Args:
        unit: rows of length one.
        rows: ascending row numbers.
        classes: the labels of all N rows, or None.
        k: neighbours of each row, below m.
        keep: how many suspects to list.
        seed: of the samples of large classes.
    """
    chosen = unit[rows]  # (m, D)
    count = len(rows)
    hunt = None if classes is None else _Hunt(unit, rows, classes, keep, seed)
    occurrences = np.zeros(count)
    heat = 0.0
    block = max(1, _BLOCK_BYTES // (count * chosen.itemsize))
    for first in range(0, count, block):
        cosines = chosen[first : first + block] @ chosen.T  # (b, m)
        own = np.arange(len(cosines))
        cosines[own, first + own] = -np.inf  # a row is no neighbour of itself: exp(-inf) = 0, and never nearest
        occurrences += _occurrences(cosines, k)
        if hunt is not None:
            hunt.search(cosines, first)
        # d^2 = 2 - 2 cos, so exp(-2 d^2) = exp(4 cos - 4); rounding may leave a cosine above 1
        np.minimum(cosines, 1.0, out=cosines)
        cosines *= 4.0
        cosines -= 4.0
        heat += float(np.exp(cosines, out=cosines).sum(dtype=np.float64))
    return PairStatistics(
        # Far-apart pairs contribute at least exp(-8) each: the logarithm is always of a positive number.
        uniformity=math.log(heat / (count * (count - 1))),
        occurrences=occurrences,
        suspect_count=0 if hunt is None else hunt.count,
        negative_pairs=0 if hunt is None else hunt.negative_pairs,
        suspects=[] if hunt is None else hunt.ranked(),
    )


def _occurrences(cosines: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """How often each column is among the k largest of a row, (m,); ties for the last place share it."""
    last = np.partition(cosines, -k, axis=1)[:, -k, None]  # (b, 1)
    rounding = _rounding(cosines)
    nearer = cosines > last + rounding
    level = (cosines >= last - rounding) & ~nearer
    share = (k - nearer.sum(axis=1)) / level.sum(axis=1)  # (b,)
    return np.asarray(nearer.sum(axis=0) + share @ level)


def _rounding(cosines: NDArray[np.floating]) -> float:
    """By how much cosines of equal rows may differ: products are summed in another order at a block's edge."""
    return 8 * float(np.finfo(cosines.dtype).eps)


class _Hunt:
    """Collects the pairs with different labels that are more alike than a class's typical positives."""

    def __init__(self, unit: Floats, rows: NDArray[np.int64], classes: ClassLabels, keep: int, seed: int) -> None:
        self.count = 0
        self._rows = rows
        self._names = classes.names
        self._codes = classes.codes[rows]  # (m,)
        typical = _typical_cosines(unit, classes, seed)  # (C,)
        self._usual = float(np.nanmedian(typical))  # some class has two samples: the labels were checked
        self._typical = typical[self._codes]  # (m,)
        self._keep = keep
        self._best: list[tuple[float, int, int, float]] = []  # (-excess, row, other row, cosine), ascending
        sizes = np.bincount(self._codes)
        self.negative_pairs = int(len(rows) ** 2 - (sizes**2).sum()) // 2

    def search(self, cosines: NDArray[np.floating], first: int) -> None:
        """Look through a block of rows (b, m) that starts at sampled row `first`."""
        tolerance = _rounding(cosines)
        below = self._typical[first : first + len(cosines)]  # (b,)
        for at, row in enumerate(cosines):
            here = first + at
            others = self._typical[here + 1 :]  # each pair once
            above = row[here + 1 :] - self._or_usual(np.fmin(below[at], others))  # (m - here - 1,)
            found = np.flatnonzero((above > tolerance) & (self._codes[here + 1 :] != self._codes[here]))
            excess = row[here + 1 :] - self._or_usual(np.fmax(below[at], others))
            self.count += len(found)
            if len(found) > self._keep:
                found = found[np.argsort(-excess[found], kind="stable")[: self._keep]]
            self._best += [(-float(excess[i]), here, here + 1 + int(i), float(row[here + 1 + i])) for i in found]
            if len(self._best) > 50 * (self._keep + 1):
                self._best = sorted(self._best)[: self._keep]

    def _or_usual(self, typical: NDArray[np.float64]) -> NDArray[np.float64]:
        """NaN stands for two classes of one sample: what is usual among the classes takes its place."""
        return np.where(np.isnan(typical), self._usual, typical)

    def ranked(self) -> list[FalseNegativeSuspect]:
        """The largest excesses found."""
        return [
            FalseNegativeSuspect(
                first=int(self._rows[i]),
                second=int(self._rows[j]),
                labels=(self._names[self._codes[i]], self._names[self._codes[j]]),
                cosine=cosine,
                typical=(_or_none(self._typical[i]), _or_none(self._typical[j])),
            )
            for _, i, j, cosine in sorted(self._best)[: self._keep]
        ]


def _or_none(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _typical_cosines(unit: Floats, classes: ClassLabels, seed: int) -> NDArray[np.float64]:
    """Median cosine of the positive pairs of each class, (C,); NaN for single samples."""
    rng = np.random.default_rng([seed, 1])
    order = np.argsort(classes.codes, kind="stable")
    typical = np.full(len(classes.sizes), np.nan)
    for code, members in enumerate(np.split(order, np.cumsum(classes.sizes)[:-1])):
        if len(members) > _CLASS_SAMPLE:
            members = rng.choice(members, _CLASS_SAMPLE, replace=False)
        if len(members) > 1:
            rows = unit[members]  # (n, D)
            typical[code] = np.median((rows @ rows.T)[np.triu_indices(len(rows), 1)])
    return typical

"""Accepted pairs of every sample at every threshold, in one pass over the pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import Floats
from nearfar.eval.thresholds.class_counts import ClassCounts, class_counts
from nearfar.eval.thresholds.pairs import PairSet, l2_distances

_BUCKETS = 1 << 14
_CHUNK = 4096  # samples whose counts are summed to classes at a time
GROUPS = 10  # of references; their spread tells the error of a sample


@dataclass(frozen=True)
class StepTable:
    """Which threshold is the first to accept a cosine.

    Attributes:
        cuts: (G,) descending: threshold g accepts a cosine of at least ``cuts[g]``, exactly where the distance of that
            cosine, computed in float64, is at most the threshold.
        scale: buckets per unit of cosine above the last cut.
        first: int64, the first threshold to accept each bucket's cosines that do not reach the cut inside.
        inside: the one cut inside each bucket, or infinity.
        simple: whether no bucket holds two cuts.
    """

    cuts: Floats
    scale: float
    first: NDArray[np.int64]
    inside: Floats
    simple: bool

    @classmethod
    def of(cls, distances: NDArray[np.float64], dtype: np.dtype[np.floating]) -> StepTable:
        """The table for ascending distances and cosines of a type."""
        cuts = _cuts(distances, dtype)
        width = max(1.001 - float(cuts[-1]), 1e-3)
        scale = float((_BUCKETS - 1) / width)
        ascending = cuts[::-1]
        buckets = _buckets(ascending, ascending[0], scale)
        inside = np.full(_BUCKETS, np.inf, dtype=dtype)
        inside[buckets] = ascending
        first = len(cuts) - np.searchsorted(buckets, np.arange(_BUCKETS), side="left")
        return cls(cuts, scale, first, inside, len(np.unique(buckets)) == len(buckets))

    def steps(self, cosines: Floats) -> NDArray[np.int64]:
        """The first threshold that accepts each cosine; all must reach the last cut."""
        if not self.simple:
            return len(self.cuts) - np.searchsorted(self.cuts[::-1], cosines, side="right")
        # Buckets ascend with the cosine, so only a cut in the same bucket has to be compared.
        bucket = _buckets(cosines, self.cuts[-1], self.scale)
        step: NDArray[np.int64] = self.first.take(bucket)
        step -= cosines >= self.inside.take(bucket)
        return step


def count_all(pairs: PairSet, distances: NDArray[np.float64], measured: NDArray[np.bool_]) -> ClassCounts:
    """Counts of all pairs, for the measured classes.

    Args:
        pairs: the labelled set.
        distances: (G,) ascending thresholds.
        measured: (C,) classes to count.
    """
    samples, steps = len(pairs.codes), len(distances)
    table = StepTable.of(distances, pairs.unit.dtype)
    positive = np.zeros(samples * steps, dtype=np.int32)  # pairs that each threshold is the first to accept
    negative = np.zeros(samples * steps, dtype=np.int32)
    for tile in pairs.tiles():
        flat = tile.cosines.ravel()
        near = np.flatnonzero(flat >= table.cuts[-1])
        kinds: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = [(negative, near)]
        if tile.mixed:
            within, across = pairs.kinds(tile)
            kinds = [(positive, near[within.ravel()[near]]), (negative, near[across.ravel()[near]])]
        rows, columns = tile.cosines.shape
        for tally, at in kinds:
            step = table.steps(flat.take(at))
            per_row = np.diff(np.searchsorted(at, np.arange(rows + 1) * columns))  # faster than dividing
            _add(tally, tile.first, rows, np.repeat(np.arange(rows) * steps, per_row) + step, steps)
            column = at - np.repeat(np.arange(rows) * columns, per_row)
            _add(tally, tile.column, columns, column * steps + step, steps)
    parts = []
    for rows_of, sizes in _class_chunks(pairs, measured):
        part = slice(rows_of.start * steps, rows_of.stop * steps)
        shape = (rows_of.stop - rows_of.start, steps)
        parts.append(
            class_counts(
                positive[part].reshape(shape).cumsum(axis=1, dtype=np.int64),
                negative[part].reshape(shape).cumsum(axis=1, dtype=np.int64),
                sizes,
                samples - sizes,
            )
        )
    return ClassCounts.join(parts)


@dataclass(frozen=True)
class SampledCounts:
    """Counts against some of the samples, and the variance of the utilities for each tenth of those alone.

    Attributes:
        counts: positive pairs are all there are; negative pairs are those with a reference.
        group_variances: float64 (10, G), variance over the classes of the utilities, were there only the references
            of one group.
        references: samples that stood for all negatives.
    """

    counts: ClassCounts
    group_variances: NDArray[np.float64]
    references: int


def count_sampled(
    pairs: PairSet,
    distances: NDArray[np.float64],
    measured: NDArray[np.bool_],
    references: int,
    rng: np.random.Generator,
) -> SampledCounts:
    """Counts of all positive pairs, and of the pairs of every sample with some references of other classes.

    Args:
        pairs: the labelled set.
        distances: (G,) ascending thresholds.
        measured: (C,) classes to count.
        references: how many samples, drawn without replacement, stand for all negatives.
        rng: draws them.
    """
    table = StepTable.of(distances, pairs.unit.dtype)
    drawn = np.array_split(rng.choice(len(pairs.codes), references, replace=False), GROUPS)
    groups = [np.sort(group) for group in drawn]
    held = np.stack([np.bincount(pairs.codes[group], minlength=len(pairs.sizes)) for group in groups])  # (K, C)
    parts = []
    first, second = np.zeros((GROUPS, len(distances))), np.zeros((GROUPS, len(distances)))
    for rows, sizes in _class_chunks(pairs, measured):
        classes = np.unique(pairs.codes[rows])
        positive = _row_counts(pairs, rows, np.arange(rows.start, rows.stop), table, within=True)
        negative = np.zeros_like(positive)
        for number, group in enumerate(groups):
            against = _row_counts(pairs, rows, group, table, within=False)
            negative += against
            alone = class_counts(positive, against, sizes, len(group) - held[number, classes]).utilities()
            first[number] += alone.sum(axis=0)
            second[number] += (alone**2).sum(axis=0)
        parts.append(class_counts(positive, negative, sizes, references - held[:, classes].sum(axis=0)))
    total = int(measured.sum())
    return SampledCounts(ClassCounts.join(parts), second / total - (first / total) ** 2, references)


def _row_counts(
    pairs: PairSet, rows: slice, others: NDArray[np.int64], table: StepTable, within: bool
) -> NDArray[np.int64]:
    """For each row its accepted pairs with the others of its class (`within`) or of other classes, (rows, G)."""
    steps, height, width = len(table.cuts), 256, 4096
    tally = np.zeros((rows.stop - rows.start) * steps, dtype=np.int64)
    for start in range(rows.start, rows.stop, height):
        row = np.arange(start, min(start + height, rows.stop))
        # Mates lie side by side, and so do the others of these classes, since both are sorted by class.
        near = slice(*np.searchsorted(pairs.codes[others], [pairs.codes[row[0]], pairs.codes[row[-1]] + 1]))
        span = range(near.start, near.stop, width) if within else range(0, len(others), width)
        for column in span:
            other = others[column : min(column + width, near.stop if within else len(others))]
            cosines = pairs.unit[row] @ pairs.unit[other].T  # (256, 4096)
            same = pairs.codes[row, None] == pairs.codes[other]
            if within:
                cosines[~same | (row[:, None] == other)] = -2.0
            else:
                cosines[same] = -2.0
            flat = cosines.ravel()
            at = np.flatnonzero(flat >= table.cuts[-1])
            _add(tally, start - rows.start, len(row), at // len(other) * steps + table.steps(flat[at]), steps)
    return tally.reshape(-1, steps).cumsum(axis=1)


def _add(tally: NDArray[np.signedinteger], first: int, count: int, at: NDArray[np.int64], steps: int) -> None:
    part = tally[first * steps : (first + count) * steps]
    part += np.bincount(at, minlength=len(part)).astype(tally.dtype)


def _class_chunks(pairs: PairSet, measured: NDArray[np.bool_]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Rows of some measured classes that lie side by side, with the sizes of those classes."""
    starts, ends = pairs.starts, np.cumsum(pairs.sizes)
    begin = None
    for code in range(len(measured) + 1):
        inside = code < len(measured) and bool(measured[code])
        if begin is not None and (not inside or ends[code] - starts[begin] > _CHUNK):
            yield slice(int(starts[begin]), int(ends[code - 1])), pairs.sizes[begin:code]
            begin = None
        if inside and begin is None:
            begin = code


def _cuts(distances: NDArray[np.float64], dtype: np.dtype[np.floating]) -> Floats:
    """The smallest number of a type that, as a cosine, lies within each distance, by bisection over all numbers."""
    whole = np.dtype(f"i{dtype.itemsize}")
    smallest = np.iinfo(whole).min

    def flip(keys: NDArray[Any]) -> NDArray[Any]:
        """The bits of floats as integers that ascend with them, and back: negative ones count downwards."""
        return np.where(keys < 0, smallest - keys, keys)

    low = np.broadcast_to(flip(np.array(-2.0, dtype).view(whole)), distances.shape)  # beyond any distance up to 2
    high = np.broadcast_to(np.array(1.0, dtype).view(whole), distances.shape)  # at distance 0
    for _ in range(8 * dtype.itemsize):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        near = l2_distances(flip(middle).view(dtype)) <= distances
        low, high = np.where(near, low, middle), np.where(near, middle, high)
    cuts: Floats = flip(high).view(dtype)
    return cuts


def _buckets(cosines: Floats, lowest: np.floating, scale: float) -> NDArray[np.intp]:
    places: NDArray[Any] = (cosines - lowest) * cosines.dtype.type(scale)
    np.minimum(places, _BUCKETS - 1, out=places)
    return places.astype(np.intp)

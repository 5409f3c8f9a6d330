"""Exact quantiles of the negative distances without holding them all: a sample says where, a pass looks there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import Floats
from nearfar.eval.thresholds.pairs import PairSet, l2_distances

_SAMPLE = 1_000_000
_DEVIATIONS = 6.0  # half the width of a bracket; one in a billion misses


def negative_distance_quantiles(pairs: PairSet, levels: Sequence[float]) -> list[float]:
    """Quantiles, by linear interpolation, of the L2 distances of all negative pairs.

    A sample of the pairs brackets the wanted order statistics; one pass counts what lies beyond each bracket and
    collects what lies inside. Exact at any size, since a bracket that misses is widened and the pass repeated. Memory
    is one tile and some thousandths of the pairs.

    Args:
        pairs: the labelled set.
        levels: quantile levels in [0, 1]; a level is the false-accept rate at the returned distance.
    """
    count = pairs.negative_pairs
    sample = np.sort(pairs.negative_sample(min(_SAMPLE, count), np.random.default_rng(0)))
    found: dict[float, float] = {}
    deviations = _DEVIATIONS
    while len(found) < len(set(levels)):
        brackets = {level: _bracket(sample, level, deviations) for level in levels if level not in found}
        lowest = min(bracket.low for bracket in brackets.values())
        for tile in pairs.tiles():
            cosines = tile.cosines[pairs.kinds(tile)[1]] if tile.mixed else tile.cosines.ravel()
            near = cosines.take(np.flatnonzero(cosines >= lowest))  # a tenth: one pass for all brackets
            for bracket in brackets.values():
                bracket.add(near)
        for level, bracket in brackets.items():
            value = bracket.quantile(level * (count - 1), count)
            if value is not None:
                found[level] = value
        deviations *= 8.0
    return [found[level] for level in levels]


def sampled_distance_quantiles(
    pairs: PairSet, levels: Sequence[float], count: int, rng: np.random.Generator
) -> list[float]:
    """The same of `count` negative pairs, drawn at random."""
    lengths = l2_distances(pairs.negative_sample(count, rng))
    return [float(value) for value in np.quantile(lengths, levels)]


@dataclass
class _Bracket:
    """Cosines from `low` to `high`: how many lie above, and those inside with their number."""

    low: float
    high: float
    above: int = 0
    values: list[NDArray[Any]] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, cosines: Floats) -> None:
        self.above += int(np.count_nonzero(cosines > self.high))
        inside = cosines[(cosines >= self.low) & (cosines <= self.high)]
        if len(inside):
            values, counts = np.unique(inside, return_counts=True)  # equal cosines must not fill the memory
            self.values.append(values)
            self.counts.append(counts)

    def quantile(self, at: float, count: int) -> float | None:
        """Distance at the position `at` among all `count` pairs by rising distance; None: not inside."""
        values: Floats = np.concatenate(self.values or [np.empty(0)])
        order = np.argsort(-values)
        reached = self.above + np.cumsum(np.concatenate([*self.counts, np.empty(0, dtype=np.int64)])[order])
        first, second = int(at), min(int(at) + 1, count - 1)
        if first < self.above or not len(reached) or second >= reached[-1]:
            return None
        low, high = l2_distances(values[order[np.searchsorted(reached, [first, second], side="right")]])
        return float(low + (high - low) * (at - first))


def _bracket(sample: NDArray[np.float64], level: float, deviations: float) -> _Bracket:
    """The bracket around a level, from ascending sampled cosines."""
    size = len(sample)
    middle = (1.0 - level) * size
    margin = deviations * (1.0 + math.sqrt(size * level * (1.0 - level)))
    low, high = math.floor(middle - margin), math.ceil(middle + margin)
    return _Bracket(
        low=float(sample[low]) if low >= 0 else -math.inf,
        high=float(sample[high]) if high < size else math.inf,
    )

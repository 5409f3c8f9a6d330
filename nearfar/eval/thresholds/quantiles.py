"""Exact quantiles of the negative distances without holding them all: count in fine bins, then look inside a few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.thresholds.pairs import PairSet, l2_distances

_BINS = 1 << 16


def negative_distance_quantiles(pairs: PairSet, levels: Sequence[float]) -> list[float]:
    """Quantiles, by linear interpolation, of the L2 distances of all negative pairs.

    Two passes over the pairs: the first counts distances in 65,536 equal bins, the second collects the
        distances of
    the few bins that hold the order statistics. Exact at any size; memory is one block and those bins.

    Args:
        pairs: the labelled set.
        levels: quantile levels in [0, 1]; a level is the false-accept rate at the returned distance.
    """
    positions = [level * (pairs.negative_pairs - 1) for level in levels]
    orders = sorted({step for at in positions for step in (int(at), min(int(at) + 1, pairs.negative_pairs - 1))})
    counts = np.zeros(_BINS, dtype=np.int64)
    for block in pairs.blocks():
        counts += np.bincount(_bin(l2_distances(block.cosines[block.negative])), minlength=_BINS)
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.unique(np.searchsorted(below, orders, side="right") - 1)  # bins that hold the order statistics

    inside: list[NDArray[np.float64]] = []
    is_wanted = np.zeros(_BINS, dtype=bool)
    is_wanted[wanted] = True
    for block in pairs.blocks():
        values = l2_distances(block.cosines[block.negative])
        inside.append(values[is_wanted[_bin(values)]])
    collected = np.sort(np.concatenate(inside))
    # Before each wanted bin lie the collected values of the earlier wanted bins only.
    skipped = below[wanted] - np.concatenate([[0], np.cumsum(counts[wanted])[:-1]])
    statistic = {
        order: float(collected[order - skipped[np.searchsorted(below[wanted], order, side="right") - 1]])
        for order in orders
    }
    quantiles = []
    for at in positions:
        low = statistic[int(at)]
        high = statistic[min(int(at) + 1, pairs.negative_pairs - 1)]
        quantiles.append(low + (high - low) * (at - int(at)))
    return quantiles


def _bin(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((values * (_BINS / 2.0)).astype(np.int64), _BINS - 1)  # distances lie in [0, 2]

"""Histograms of the cosines of positive and negative pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike
from nearfar.eval.thresholds.pairs import PairSet, pair_set

EXACT_PAIRS = 50_000_000
"""Sets with more pairs than this are sampled."""
SAMPLED_PAIRS = 2_000_000
"""How many positive and how many negative pairs a sample holds."""


@dataclass(frozen=True)
class ScoreHistogram:
    """Densities of the cosines of positive and of negative pairs, on the same bins.

    Attributes:
        edges: float64 (bins + 1,), ascending bin edges that span -1 to 1.
        positive: float64 (bins,), density of the positive pairs; times the bin widths it sums to 1.
        negative: float64 (bins,), density of the negative pairs.
        positive_pairs: number of unordered positive pairs in the set.
        negative_pairs: number of unordered negative pairs in the set.
        sampled: whether a seeded sample of the pairs was used in place of all.
    """

    edges: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    positive_pairs: int
    negative_pairs: int
    sampled: bool


def score_histogram(embeddings: ArrayLike, labels: ArrayLike, bins: int = 100, seed: int = 0) -> ScoreHistogram:
    """Histogram the cosines of positive and of negative pairs.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one and computed in
            float64.
        labels: N integers of any size, or N strings.
        bins: number of equal bins from -1 to 1.
        seed: of the sample, when one is drawn.

    Returns:
        Two densities on common bins. All pairs count up to 50 million of them (10,000 samples); beyond, 2
        million positive and 2 million negative pairs are drawn with replacement.

    Raises:
        InputError: malformed embeddings or labels, or fewer than one bin.

    Example:
        >>> histogram = score_histogram([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], ["a", "a", "b"], bins=4)
        >>> histogram.positive
        array([0., 0., 0., 2.])
        >>> histogram.negative
        array([0., 0., 2., 0.])
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; at least 1 is needed")
    pairs = pair_set(embeddings, labels)
    edges = np.linspace(-1.0, 1.0, bins + 1)
    positive, negative, sampled = count_pairs(pairs, bins, seed)
    width = 2.0 / bins
    return ScoreHistogram(
        edges=edges,
        positive=positive / (positive.sum() * width),
        negative=negative / (negative.sum() * width),
        positive_pairs=pairs.positive_pairs,
        negative_pairs=pairs.negative_pairs,
        sampled=sampled,
    )


def count_pairs(pairs: PairSet, bins: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Positive and negative pairs in each of `bins` equal bins from -1 to 1, and whether they are a sample."""
    sampled = pairs.positive_pairs + pairs.negative_pairs > EXACT_PAIRS
    return (*(_count_sample(pairs, bins, seed) if sampled else _count_all(pairs, bins)), sampled)


def _count(cosines: NDArray[Any], bins: int) -> NDArray[np.int64]:
    # Rounding puts cosines of equal vectors just outside -1 and 1.
    return np.histogram(cosines.clip(-1.0, 1.0), bins, (-1.0, 1.0))[0].astype(np.int64)


def _count_all(pairs: PairSet, bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    positive = np.zeros(bins, dtype=np.int64)
    negative = np.zeros(bins, dtype=np.int64)
    for block in pairs.blocks():
        positive += _count(block.cosines[block.positive], bins)
        negative += _count(block.cosines[block.negative], bins)
    return positive, negative


def _count_sample(pairs: PairSet, bins: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    sizes, starts, samples = pairs.sizes, pairs.starts, len(pairs.codes)
    positive = np.zeros(bins, dtype=np.int64)
    negative = np.zeros(bins, dtype=np.int64)
    # A sample is in as many positive pairs as it has class mates, and in as many negative ones as strangers.
    mates = (sizes - 1)[pairs.codes].astype(np.float64)  # (N,)
    strangers = (samples - sizes)[pairs.codes].astype(np.float64)
    chunk = SAMPLED_PAIRS // 20
    for _ in range(20):
        left = rng.choice(samples, chunk, p=mates / mates.sum())
        code = pairs.codes[left]
        skip = rng.integers(1, sizes[code])  # how far ahead in the class, round the end: never itself
        right = starts[code] + (left - starts[code] + skip) % sizes[code]
        positive += _count(_cosines(pairs, left, right), bins)
        left = rng.choice(samples, chunk, p=strangers / strangers.sum())
        code = pairs.codes[left]
        outside = rng.integers(0, samples - sizes[code])  # the others, with the class of `left` cut out
        right = np.where(outside < starts[code], outside, outside + sizes[code])
        negative += _count(_cosines(pairs, left, right), bins)
    return positive, negative


def _cosines(pairs: PairSet, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("nd,nd->n", pairs.unit[left], pairs.unit[right]))

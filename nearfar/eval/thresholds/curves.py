"""ROC and DET curves of pair scores, with their operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike
from nearfar.eval.thresholds.histograms import count_pairs
from nearfar.eval.thresholds.pairs import pair_set

BINS = 100_000
"""Thresholds looked at, evenly from -1 to 1: two hundred-thousandths apart."""
FAR_LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
_POINTS = 500
_FEWEST_PAIRS = 10  # a rate that rests on fewer is chance


@dataclass(frozen=True)
class OperatingPoint:
    """The laxest threshold that keeps a false-accept rate.

    Attributes:
        level: the false-accept rate asked for.
        threshold: the lowest cosine at which it is kept.
        far: the false-accept rate there, at most `level`.
        tar: the true-accept rate there.
    """

    level: float
    threshold: float
    far: float
    tar: float


@dataclass(frozen=True)
class PairCurves:
    """Error rates of "two samples match when their cosine reaches the threshold".

    Attributes:
        thresholds: float64 (G,), ascending cosines; at most about a thousand of those looked at, chosen evenly along
            both error rates.
        far: float64 (G,), share of the negative pairs accepted at each; falls with the threshold.
        frr: float64 (G,), share of the positive pairs rejected; 1 - frr is the true-accept rate (TAR).
        eer: the equal error rate: where `far` and `frr` meet, between the two thresholds that enclose it.
        eer_threshold: the cosine there.
        auc: area under the ROC curve: the chance that a positive pair scores above a negative one.
        operating_points: TAR at fixed FAR; levels that fewer than ten scored negative pairs would reach are left out.
        positive_pairs: number of unordered positive pairs in the set.
        negative_pairs: number of unordered negative pairs in the set.
        sampled: whether a seeded sample of the pairs was scored in place of all.
    """

    thresholds: NDArray[np.float64]
    far: NDArray[np.float64]
    frr: NDArray[np.float64]
    eer: float
    eer_threshold: float
    auc: float
    operating_points: tuple[OperatingPoint, ...]
    positive_pairs: int
    negative_pairs: int
    sampled: bool


def pair_curves(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    far_levels: Sequence[float] = FAR_LEVELS,
    bins: int = BINS,
    seed: int = 0,
) -> PairCurves:
    """Trace false accepts against false rejects over all thresholds.

    Pairs are counted by bins, never held as a matrix. Rates are exact at every edge of a bin; equal error rate and
    area are right to within the pairs of one bin.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one and computed in float64.
        labels: N integers of any size, or N strings.
        far_levels: false-accept rates in (0, 1) to give the true-accept rate at.
        bins: number of equal bins from -1 to 1, at least 2.
        seed: of the sample, when one is drawn.

    Returns:
        Curves and operating points. All pairs count up to 50 million of them (10,000 samples); beyond, 2 million
        positive and 2 million negative pairs are drawn with replacement.

    Raises:
        InputError: malformed embeddings or labels, fewer than two bins, or a level outside (0, 1).

    Example:
        >>> curves = pair_curves([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], ["a", "a", "b"])
        >>> curves.eer, curves.auc  # the positive pair has cosine 0.8, the negative ones 0.6 and 0
        (0.0, 1.0)

    Source: A. Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
    """
    if bins < 2:
        raise InputError(f"bins is {bins}; at least 2 are needed")
    for level in far_levels:
        if not 0 < level < 1:
            raise InputError(f"far_levels holds {level}; a false-accept rate lies between 0 and 1")
    pairs = pair_set(embeddings, labels)
    positive, negative, sampled = count_pairs(pairs, bins, seed)
    edges = np.linspace(-1.0, 1.0, bins + 1)
    accepted = _at_least(positive) / positive.sum()  # (bins + 1,)
    far = _at_least(negative) / negative.sum()
    eer, eer_threshold = _equal_error(edges, far, 1 - accepted)
    shown = _spread(far, accepted)
    return PairCurves(
        thresholds=edges[shown],
        far=far[shown],
        frr=1 - accepted[shown],
        eer=eer,
        eer_threshold=eer_threshold,
        auc=float(((accepted[:-1] + accepted[1:]) / 2) @ (negative / negative.sum())),
        operating_points=tuple(
            _operating_point(edges, far, accepted, level)
            for level in far_levels
            if level * negative.sum() >= _FEWEST_PAIRS
        ),
        positive_pairs=pairs.positive_pairs,
        negative_pairs=pairs.negative_pairs,
        sampled=sampled,
    )


def _at_least(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs at or above each edge: (bins,) -> (bins + 1,)."""
    return np.append(counts[::-1].cumsum()[::-1], 0)


def _equal_error(edges: NDArray[np.float64], far: NDArray[np.float64], frr: NDArray[np.float64]) -> tuple[float, float]:
    """Where the falling and the rising rate meet, on the straight line between two edges."""
    gap = far - frr  # (bins + 1,), from 1 down to -1
    right = int(np.argmax(gap <= 0))
    left = right - 1
    if gap[right] == 0:
        # The rates may be equal over a gap between the scores; its middle is as far from either.
        last = right + int(np.argmax(np.append(gap[right:] != 0, True))) - 1
        return float(far[right]), float((edges[right] + edges[last]) / 2)
    share = float(gap[left] / (gap[left] - gap[right]))
    return float(far[left] + share * (far[right] - far[left])), float(
        edges[left] + share * (edges[right] - edges[left])
    )


def _operating_point(
    edges: NDArray[np.float64], far: NDArray[np.float64], accepted: NDArray[np.float64], level: float
) -> OperatingPoint:
    at = int(np.argmax(far <= level))
    return OperatingPoint(level, float(edges[at]), float(far[at]), float(accepted[at]))


def _spread(far: NDArray[np.float64], accepted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Edges to keep: ends, and what is evenly spaced by log FAR and by log FRR, where either rate changes."""
    change = np.flatnonzero((np.diff(far) != 0) | (np.diff(accepted) != 0))
    moving = np.unique(np.concatenate([[0], change, change + 1, [len(far) - 1]]))
    if len(moving) <= 2 * _POINTS:
        return moving
    kept = [moving[:1], moving[-1:]]
    for rate in (far[moving], 1 - accepted[moving]):
        seen = rate[rate > 0]
        scale = np.log(np.maximum(rate, seen.min()))  # (moving,)
        order = np.argsort(scale, kind="stable")
        wanted = np.linspace(scale[order[0]], scale[order[-1]], _POINTS)
        kept.append(moving[order[np.searchsorted(scale[order], wanted).clip(0, len(order) - 1)]])
    return np.unique(np.concatenate(kept))

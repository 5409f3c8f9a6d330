"""Accepted pairs of classes at every threshold, and what their samples say about noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassCounts:
    """Accepted pairs of T classes at G thresholds.

    Attributes:
        positive: int64 (T, G), accepted ordered pairs within the class: each pair twice.
        negative: int64 (T, G), accepted pairs with samples of other classes.
        shared: int64 (T, G), ordered pairs of accepted pairs within the class that share one sample.
        spread: float64 (G,), squared deviations of the samples' false-accept rates from the mean of their class,
            summed over all samples.
        sizes: int64 (T,), samples of each class.
        outside: int64 (T,), samples of other classes that each sample was compared with.
    """

    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    shared: NDArray[np.int64]
    spread: NDArray[np.float64]
    sizes: NDArray[np.int64]
    outside: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[ClassCounts]) -> ClassCounts:
        """The counts of the classes of all parts, in order."""
        return cls(
            positive=np.concatenate([part.positive for part in parts]),
            negative=np.concatenate([part.negative for part in parts]),
            shared=np.concatenate([part.shared for part in parts]),
            spread=np.sum([part.spread for part in parts], axis=0),
            sizes=np.concatenate([part.sizes for part in parts]),
            outside=np.concatenate([part.outside for part in parts]),
        )

    def sensitivity(self) -> NDArray[np.float64]:
        """Share of accepted positive pairs, (T, G)."""
        return np.asarray(self.positive / (self.sizes * (self.sizes - 1))[:, None], dtype=np.float64)

    def specificity(self) -> NDArray[np.float64]:
        """Share of rejected negative pairs, (T, G)."""
        # A sample of the pairs may hold none of a large class.
        possible = np.maximum(self.sizes * self.outside, 1)[:, None]
        return np.asarray(1.0 - self.negative / possible, dtype=np.float64)

    def utilities(self) -> NDArray[np.float64]:
        """Harmonic mean of both, (T, G)."""
        return harmonic_mean(self.sensitivity(), self.specificity())


def class_counts(
    positive: NDArray[np.int64], negative: NDArray[np.int64], sizes: NDArray[np.int64], outside: NDArray[np.int64]
) -> ClassCounts:
    """Sum the accepted pairs of samples to classes.

    Args:
        positive: (M, G), for each sample (sorted by class) the accepted pairs with its own class.
        negative: (M, G), for each sample the accepted pairs with other classes.
        sizes: (T,), samples of each class; sums to M.
        outside: (T,), samples of other classes that each sample was compared with.
    """
    starts = np.cumsum(sizes) - sizes
    rates = negative / np.repeat(np.maximum(outside, 1), sizes)[:, None]  # (M, G)
    rates -= np.repeat(np.add.reduceat(rates, starts, axis=0) / sizes[:, None], sizes, axis=0)
    return ClassCounts(
        positive=np.add.reduceat(positive, starts, axis=0),  # (M, G) -> (T, G)
        negative=np.add.reduceat(negative, starts, axis=0),
        shared=np.add.reduceat(positive * (positive - 1), starts, axis=0),
        spread=np.einsum("mg,mg->g", rates, rates),
        sizes=sizes,
        outside=outside,
    )


def harmonic_mean(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """2ab / (a + b), and 0 where both are 0."""
    total = a + b
    return np.divide(2.0 * a * b, total, out=np.zeros_like(total), where=total > 0)

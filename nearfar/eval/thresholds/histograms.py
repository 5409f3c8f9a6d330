"""Histograms of the cosines of positive and negative pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

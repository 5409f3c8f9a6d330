"""Operating-point inconsistency (OPIS): does one distance threshold serve every class alike?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OPISResult:
    """How far the classes' utilities lie apart over the calibration range of thresholds.

    T classes were measured on G thresholds.

    Attributes:
        opis: variance of the classes' utilities at a threshold, averaged over the thresholds.
        epsilon_opis: mean squared gap between the best and the worst `epsilon` share of the classes.
        noise_floor: the OPIS that sampling noise alone would give, were all classes alike.
        corrected: max(0, opis - noise_floor).
        thresholds: float64 (G,), ascending L2 distances between unit vectors; a pair is accepted at or below one.
        similarities: float64 (G,), the same thresholds as cosines, descending.
        utilities: float64 (T, G), utility of each class at each threshold.
        mean_utility: float64 (G,), mean of `utilities` over the classes.
        class_labels: T labels, ascending; the rows of `utilities`.
        class_sizes: int64 (T,), samples of each class.
        excluded_classes: labels of the classes with fewer than `min_class_size` samples; negatives only.
        far_range: false-accept rates at the first and last threshold, or None when the caller gave the distances.
        epsilon: the share used for `epsilon_opis`.
        negative_pairs: number of unordered negative pairs in the set.
        quantile_pairs: negative pairs that the far_range quantiles were read from; below `negative_pairs` they were
            sampled.
    """

    opis: float
    epsilon_opis: float
    noise_floor: float
    corrected: float
    thresholds: NDArray[np.float64]
    similarities: NDArray[np.float64]
    utilities: NDArray[np.float64]
    mean_utility: NDArray[np.float64]
    class_labels: list[int] | list[str]
    class_sizes: NDArray[np.int64]
    excluded_classes: list[int] | list[str]
    far_range: tuple[float, float] | None
    epsilon: float
    negative_pairs: int
    quantile_pairs: int

"""What OPIS would be if all classes were alike: the share of it that sampling noise explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.thresholds.class_counts import ClassCounts, harmonic_mean

_DRAWS = 1000


def noise_floor(counts: ClassCounts, seed: int) -> float:
    """Expected OPIS when every class has the pooled true curve and only the drawn samples differ.

    At each threshold, for each class size n, utilities are drawn from a model whose moments come from the data:

    - sensitivity: a beta-binomial over the n(n - 1)/2 pairs, with the pooled acceptance rate p as its mean and
      the variance of a U-statistic, ``(2 p (1 - p) + 4 (n - 2) c) / (n (n - 1))``. c is the covariance of two
      pairs that share a sample; taking pairs as independent (c = 0) would make the noise too small. c is
      measured within classes of four or more samples (shared pairs against disjoint ones), so that true
      differences between classes do not enter. With classes of two and three samples only, such differences
      and noise cannot be told apart: c is measured against p squared, and the floor takes nearly all of OPIS.
    - specificity: normal around the pooled rate, with the variance within classes of the samples' own rates,
      over n.

    Both are drawn independently. How a class's curve hangs together across thresholds needs no model, since
    OPIS is a mean over thresholds.

    Accuracy, as the tests hold it on simulated sets of 150 to 250 classes: where all classes share one curve,
    the floor averages within 12 % of OPIS for 2, 3, 5 and 10 samples a class; where classes differ, what is
    left of OPIS at 5 and 10 samples a class is within 25 % of its value at 20.

    Args:
        counts: the accepted pairs.
        seed: of the 1,000 draws for each class size.
    """
    sizes, repeats = np.unique(counts.sizes, return_counts=True)
    share = repeats / repeats.sum()
    rate = _pooled(counts.sensitivity(), counts.sizes)  # (G,)
    covariance = _shared_pair_covariance(counts, rate)  # (G,)
    specificity = _pooled(counts.specificity(), counts.sizes)
    spread = _within_class_variance(counts)
    rng = np.random.default_rng(seed)
    first = np.zeros_like(rate)
    second = np.zeros_like(rate)
    variance_of_mean = np.zeros_like(rate)
    for size, part in zip(sizes.tolist(), share.tolist(), strict=True):
        accepted = _draw_sensitivity(rng, size, rate, covariance)  # (draws, G)
        rejected = rng.normal(specificity, np.sqrt(spread / size), (_DRAWS, len(rate))).clip(0.0, 1.0)
        utility = harmonic_mean(accepted, rejected)
        first += part * utility.mean(axis=0)
        second += part * (utility**2).mean(axis=0)
        variance_of_mean += part * utility.var(axis=0) / len(counts.sizes)
    # E[mean of U^2 - (mean of U)^2] over the classes of one threshold.
    return float(np.mean(np.maximum(second - first**2 - variance_of_mean, 0.0)))


def _pooled(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = sizes / sizes.sum()
    return np.asarray(np.clip(weights @ values, 0.0, 1.0))  # (T,) @ (T, G) -> (G,); rounding may leave [0, 1]


def _shared_pair_covariance(counts: ClassCounts, rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the acceptance of two pairs of a class that share a sample, (G,)."""
    n = counts.sizes.astype(np.float64)
    large = n >= 4 if (n >= 4).any() else n >= 3
    if not large.any():
        return np.zeros_like(rate)
    n = n[large][:, None]  # (T', 1)
    pairs = counts.positive[large] / 2.0
    both = counts.shared[large]
    shared = both / (n * (n - 1) * (n - 2))
    weights = n / n.sum()
    if n.min() >= 4:
        # All ordered pairs of distinct pairs, less those that share a sample.
        disjoint = (pairs**2 - pairs - both) / (n * (n - 1) * (n - 2) * (n - 3) / 4.0)
        covariance = (weights * (shared - disjoint)).sum(axis=0)
    else:
        covariance = (weights * shared).sum(axis=0) - rate**2
    # A U-statistic bounds it by half the variance of one pair.
    return np.asarray(np.clip(covariance, 0.0, rate * (1.0 - rate) / 2.0))


def _within_class_variance(counts: ClassCounts) -> NDArray[np.float64]:
    """Variance within classes of the samples' own false-accept rates, (G,)."""
    return np.asarray(counts.spread / (counts.sizes - 1).sum(), dtype=np.float64)


def _draw_sensitivity(
    rng: np.random.Generator, size: int, rate: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Beta-binomial shares of accepted pairs of a class of `size` samples, (draws, G)."""
    pairs = size * (size - 1) // 2
    variance = rate * (1.0 - rate)
    inner = (rate > 0) & (rate < 1)
    correlation = np.zeros_like(rate)  # of two pairs of the class, averaged over shared and disjoint ones
    if pairs > 1:
        np.divide(4.0 * covariance, variance * (size + 1), out=correlation, where=inner)
    clustered = correlation > 1e-9
    chance = np.broadcast_to(rate, (_DRAWS, len(rate))).copy()
    strength = 1.0 / correlation[clustered] - 1.0
    mean = rate[clustered]
    chance[:, clustered] = rng.beta(mean * strength, (1.0 - mean) * strength, (_DRAWS, len(mean)))
    return np.asarray(rng.binomial(pairs, chance) / pairs, dtype=np.float64)

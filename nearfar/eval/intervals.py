"""Bootstrap intervals of mean differences, and the smallest difference that a set of queries can show."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.paired_tests import UnitSums, row_blocks
from nearfar.eval.student_t import t_quantile

_NORMAL = NormalDist()


def bootstrap_means(units: UnitSums, resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of each column over units drawn anew with replacement.

    Args:
        units: sums over units. Clusters are drawn whole, so the number of queries varies with them.
        resamples: how many sets of units to draw.
        seed: of the draw. The same sets serve all columns.

    Returns:
        float64 (resamples, C).
    """
    rng = np.random.default_rng([seed, 1])
    count, columns = units.sums.shape
    totals = np.column_stack([units.sums, units.sizes])  # (G, C + 1)
    means = np.empty((resamples, columns))
    first = 0
    for rows in row_blocks(resamples, count):
        drawn = rng.integers(0, count, (rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        sums = times.astype(np.float64) @ totals  # (rows, G) @ (G, C + 1) -> (rows, C + 1)
        means[first : first + rows] = sums[:, :-1] / sums[:, -1:]
        first += rows
    return means


def jackknife_means(sums: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean without each unit in turn, (G,), from its sums and sizes (G,); at least two units."""
    return np.asarray((sums.sum() - sums) / (sizes.sum() - sizes))


def bca_interval(
    observed: float,
    replicates: NDArray[np.float64],
    jackknife: NDArray[np.float64],
    confidence: float,
    *,
    expand: bool = True,
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval.

    Args:
        observed: the estimate.
        replicates: float64 (B,), the estimate on resampled units.
        jackknife: float64 (G,), the estimate without each unit in turn.
        confidence: of the two-sided interval, in (0, 1).
        expand: widen for few units: the bootstrap takes the standard error without the factor G / (G - 1) and
            a normal in place of a t quantile; normal quantiles z become ``sqrt(G / (G - 1)) * t`` with G - 1
            degrees of freedom. False gives the textbook interval.

    Returns:
        Both ends; (observed, observed) when no unit differs from another.

    Source: B. Efron, "Better bootstrap confidence intervals", JASA 82, 1987; the expansion is T.
        Hesterberg's, "What teachers should know about the bootstrap", The American Statistician 69, 2015.
    """
    count = len(jackknife)
    influence = jackknife.mean() - jackknife  # (G,)
    spread = float((influence**2).sum())
    scale = max(1.0, abs(observed), float(np.abs(replicates).max()))
    if spread <= (1e-15 * scale) ** 2 * count:
        return observed, observed
    acceleration = float((influence**3).sum()) / (6 * spread**1.5)
    # Equal up to rounding is equal: discrete metrics reproduce the observed value often.
    gap = replicates - observed
    below = float((gap < -1e-12 * scale).mean() + (gap <= 1e-12 * scale).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(replicates)), 1 - 0.5 / len(replicates)))
    tail = (1 - confidence) / 2
    reach = _NORMAL.inv_cdf(1 - tail)
    if expand:
        reach = math.sqrt(count / (count - 1)) * t_quantile(1 - tail, count - 1)
    levels = [_bca_level(bias, acceleration, z) for z in (-reach, reach)]
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _bca_level(bias: float, acceleration: float, z: float) -> float:
    """The share of replicates below the end that belongs to the normal quantile z."""
    shifted = bias + z
    divisor = 1 - acceleration * shifted
    if divisor <= 0:  # beyond the pole of the formula: that end lies past every replicate
        return float(shifted > 0)
    return _NORMAL.cdf(bias + shifted / divisor)


def minimum_detectable_difference(standard_error: float, df: int, alpha: float, power: float = 0.8) -> float:
    """The true difference that a two-sided test at level `alpha` finds with probability `power`.

    Args:
        standard_error: of the mean difference.
        df: degrees of freedom.
        alpha: level of one test, without correction for many.
        power: share of repetitions that find it; 0.8 by convention.

    Returns:
        ``(t_{1 - alpha/2} + t_{power}) * standard_error``.

    Example:
        >>> round(minimum_detectable_difference(0.01, 199, 0.05), 4)
        0.0282

    Source: H. S. Bloom, "Minimum detectable effects", Evaluation Review 19, 1995.
    """
    return (t_quantile(1 - alpha / 2, df) + t_quantile(power, df)) * standard_error

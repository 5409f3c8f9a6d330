"""Operating-point inconsistency (OPIS): does one distance threshold serve every class alike?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike
from nearfar.eval.thresholds.accept_counts import GROUPS, SampledCounts, count_all, count_sampled
from nearfar.eval.thresholds.class_bootstrap import class_interval
from nearfar.eval.thresholds.noise import noise_floor
from nearfar.eval.thresholds.pairs import PairSet, pair_set
from nearfar.eval.thresholds.quantiles import negative_distance_quantiles, sampled_distance_quantiles

_QUANTILE_PAIRS = 4_000_000


@dataclass(frozen=True)
class OPISResult:
    """How far the classes' utilities lie apart over the calibration range of thresholds.

    T classes were measured on G thresholds.

    Attributes:
        opis: variance of the classes' utilities at a threshold, averaged over the thresholds.
        epsilon_opis: mean squared gap between the best and the worst `epsilon` share of the classes.
        noise_floor: the OPIS that sampling noise alone would give, were all classes alike.
        corrected: max(0, opis - noise_floor).
        interval: ends of a 95 % interval of `opis`, by drawing the classes again with replacement: what other classes
            of the same kind, with as many samples each, would show. It holds the noise that `opis` holds.
        warning: in words, that more than half of `opis` is noise, and what to do; None when it is not.
        thresholds: float64 (G,), ascending L2 distances between unit vectors; a pair is accepted at or below
            one.
        similarities: float64 (G,), the same thresholds as cosines, descending.
        utilities: float64 (T, G), utility of each class at each threshold.
        mean_utility: float64 (G,), mean of `utilities` over the classes.
        class_labels: T labels, ascending; the rows of `utilities`.
        class_sizes: int64 (T,), samples of each class.
        excluded_classes: labels of the classes with fewer than `min_class_size` samples; negatives only.
        far_range: false-accept rates at the first and last threshold, or None when the caller gave the
            distances.
        epsilon: the share used for `epsilon_opis`.
        negative_pairs: number of unordered negative pairs in the set.
        quantile_pairs: negative pairs that the far_range quantiles were read from: all of them, unless sampled.
        sample: samples that stood for all negatives, or None when every pair was looked at.
        sampling_error: standard error of `opis` that comes from `sample`; 0 without.
    """

    opis: float
    epsilon_opis: float
    noise_floor: float
    corrected: float
    interval: tuple[float, float]
    warning: str | None
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
    sample: int | None = None
    sampling_error: float = 0.0


def opis(
    embeddings: ArrayLike,
    labels: ArrayLike,
    far_range: tuple[float, float] = (1e-2, 1e-1),
    thresholds: int = 101,
    epsilon: float = 0.1,
    min_class_size: int = 2,
    seed: int = 0,
    distances: Sequence[float] | NDArray[np.float64] | None = None,
    sample: int | None = None,
) -> OPISResult:
    """Measure how differently classes fare under one and the same threshold.

    At a threshold a pair is accepted when its L2 distance (unit vectors, ``sqrt(2 - 2 cos)``) does not exceed
    it. For each class, sensitivity is the share of its positive pairs that are accepted, specificity the
    share of its negative pairs (one sample inside, one outside) that are not, and utility their harmonic
    mean. OPIS is the variance of the utilities over the classes (divided by T), averaged over the thresholds.
    0: one threshold serves every class alike.

    Classes of few samples measure mostly noise: at two samples each, classes with one true curve still show
    0.07 to 0.2. Read `corrected`, which takes the expected noise off, or `opis` beside `noise_floor` (see
    `nearfar.eval.thresholds.noise` for its assumptions). At two or three samples a class, differences between
    classes and noise cannot be told apart, and `corrected` is near zero whatever the classes do.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one. Similarities of float64
            are computed in float64, all others in float32; what follows is exact for the similarities so computed.
        labels: N integers of any size, or N strings.
        far_range: false-accept rates over all negative pairs between which thresholds are taken; 0.01 to 0.1
            in the paper. The distances there are exact quantiles (linear interpolation).
        thresholds: how many equally spaced distances, both ends included; 101 by default, a common choice.
        epsilon: share of the classes that `epsilon_opis` calls best and worst (by mean utility over the
            thresholds, at least one class, ties by label); 0.1 in the paper.
        min_class_size: classes with fewer samples are not measured, but serve as negatives. At least 2.
        seed: of the draws behind `noise_floor`, `interval` and `sample`; nothing else is random.
        distances: ascending L2 distances to use as thresholds, in place of `far_range` and `thresholds`.
        sample: for sets too large for all pairs, how many samples, drawn at random, stand for all negatives (10,000
            is a good start for a million). Every class is measured, on all its positive pairs and on the pairs of its
            samples with these. The noise that this adds to `opis` is taken off again, so `opis` is no longer the plain
            variance of `utilities`; what is left is stated in `sampling_error`.

    Returns:
        The scores and every class's utility curve. Time grows with N squared (two passes over all pairs), or with N
        times `sample`; memory with N times the number of thresholds, 8 bytes each, or with `sample` the number of
        classes times that of thresholds.

    Raises:
        InputError: malformed embeddings or labels, an option out of range, a sample below 100 or above N, fewer
            than two classes to measure, or negatives that all lie at one distance.

    Example:
        >>> import numpy as np
        >>> angles = np.radians([0.0, 10, 25, 40, 70, 120, 125, 131])
        >>> points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        >>> grid = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
        >>> result = opis(points, [0, 0, 0, 1, 1, 2, 2, 2], distances=grid)
        >>> round(result.opis, 6)
        0.108815

    Source: Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024.
    """
    _check_options(far_range, thresholds, epsilon, min_class_size)
    pairs = pair_set(embeddings, labels)
    measured = pairs.sizes >= min_class_size  # (C,)
    if measured.sum() < 2:
        raise InputError(
            f"{int(measured.sum())} of {len(measured)} classes have at least min_class_size={min_class_size} samples; "
            "OPIS compares two or more"
        )
    if sample is not None and not 10 * GROUPS <= sample <= len(pairs.codes):
        raise InputError(f"sample is {sample}; it must lie between {10 * GROUPS} and the {len(pairs.codes)} embeddings")
    rng = np.random.default_rng(seed)
    grid = _grid(pairs, far_range, thresholds, sample, rng) if distances is None else _checked_grid(distances)
    drawn = None
    if sample is None:
        counts = count_all(pairs, grid, measured)
    else:
        drawn = count_sampled(pairs, grid, measured, sample, rng)
        counts = drawn.counts
    utilities = counts.utilities()  # (T, G)
    score, error = float(utilities.var(axis=0).mean()), 0.0
    if drawn is not None:
        score, error = _sampled_score(score, drawn, pairs, grid, far_range if distances is None else None)
    floor = noise_floor(counts, seed)
    return OPISResult(
        opis=score,
        epsilon_opis=_epsilon_opis(utilities, epsilon),
        noise_floor=floor,
        corrected=max(0.0, score - floor),
        interval=class_interval(utilities, seed),
        warning=_noise_warning(score, floor, counts.sizes),
        thresholds=grid,
        similarities=1.0 - grid**2 / 2.0,
        utilities=utilities,
        mean_utility=utilities.mean(axis=0),
        class_labels=_pick(pairs.names, measured),
        class_sizes=pairs.sizes[measured],
        excluded_classes=_pick(pairs.names, ~measured),
        far_range=far_range if distances is None else None,
        epsilon=epsilon,
        negative_pairs=pairs.negative_pairs,
        quantile_pairs=pairs.negative_pairs if sample is None else _QUANTILE_PAIRS,
        sample=sample,
        sampling_error=error,
    )


def _grid(
    pairs: PairSet, far_range: tuple[float, float], thresholds: int, sample: int | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    if sample is None:
        low, high = negative_distance_quantiles(pairs, far_range)
    else:
        low, high = sampled_distance_quantiles(pairs, far_range, _QUANTILE_PAIRS, rng)
    if low == high:
        raise InputError(
            f"the negative pairs lie at one distance ({low:.6g}) between the false-accept rates {far_range}: "
            "the embeddings have collapsed, or far_range is too narrow"
        )
    return np.linspace(low, high, thresholds)


def _sampled_score(
    score: float,
    drawn: SampledCounts,
    pairs: PairSet,
    grid: NDArray[np.float64],
    far_range: tuple[float, float] | None,
) -> tuple[float, float]:
    """OPIS without the noise of the sampled negatives, and its standard error.

    That noise falls with the number of references, so what a tenth of them adds tells what all of them add; and the
    spread of the ten scores tells the error. The ends of the grid, read from sampled pairs, add theirs.
    """
    unseen = 1.0 - drawn.references / len(pairs.codes)
    alone = drawn.group_variances.mean(axis=1)  # (10,)
    bias = (float(alone.mean()) - score) / (GROUPS - 1) * unseen
    variance = float(alone.var(ddof=1)) / GROUPS * unseen
    if far_range is not None and len(grid) > 1:
        at_ends = drawn.counts.utilities().var(axis=0)[[0, -1]]
        far = 1.0 - drawn.counts.specificity().mean(axis=0)  # (G,)
        density = np.gradient(far, grid)[[0, -1]]
        shift = np.sqrt(np.array(far_range) * (1.0 - np.array(far_range)) / _QUANTILE_PAIRS)  # of the rates
        moved = (at_ends - score) / (grid[-1] - grid[0]) * shift / np.maximum(density, 1e-12)
        variance += float((moved**2).sum())
    return max(0.0, score - bias), variance**0.5


def _noise_warning(score: float, floor: float, sizes: NDArray[np.int64]) -> str | None:
    if floor <= 0.5 * score:
        return None
    return (
        f"more than half of this OPIS ({min(floor, score):.3g} of {score:.3g}) is what noise alone would show, with "
        f"{int(np.median(sizes))} samples in the typical class; read the corrected value, and measure classes of more "
        "samples (min_class_size) before comparing models"
    )


def _epsilon_opis(utilities: NDArray[np.float64], epsilon: float) -> float:
    count = max(1, round(epsilon * len(utilities)))
    order = np.argsort(utilities.mean(axis=1), kind="stable")
    gap = utilities[order[-count:]].mean(axis=0) - utilities[order[:count]].mean(axis=0)  # (G,)
    return float(np.mean(gap**2))


def _pick(names: list[int] | list[str], mask: NDArray[np.bool_]) -> list[int] | list[str]:
    return [name for name, keep in zip(names, mask, strict=True) if keep]  # type: ignore[return-value]


def _check_options(far_range: tuple[float, float], thresholds: int, epsilon: float, min_class_size: int) -> None:
    if len(far_range) != 2 or not 0 < far_range[0] < far_range[1] < 1:
        raise InputError(f"far_range is {far_range}; it must be two ascending rates between 0 and 1")
    if thresholds < 2:
        raise InputError(f"thresholds is {thresholds}; at least 2 are needed")
    if not 0 < epsilon <= 1:
        raise InputError(f"epsilon is {epsilon}; it must be above 0 and at most 1")
    if min_class_size < 2:
        raise InputError(f"min_class_size is {min_class_size}; a class needs 2 samples to have a positive pair")


def _checked_grid(distances: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    grid = np.array(distances, dtype=np.float64)
    if grid.ndim != 1 or not len(grid) or not (np.diff(grid) > 0).all() or not ((grid >= 0) & (grid <= 2)).all():
        raise InputError("distances must be one or more ascending numbers between 0 and 2")
    return grid

"""How embeddings fill their space: alignment, uniformity, hubs, dimension, collapse and suspicious labels.

All measures are of rows scaled to length one, since retrieval compares cosines. What needs all pairs of rows is
measured on a seeded sample of rows, block by block; the rest takes one pass over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.geometry_pairs import FalseNegativeSuspect, PairStatistics, measure_pairs
from nearfar.eval.inputs import ArrayLike, ClassLabels, Floats, class_labels, unit_rows

NARROW_CONE = 0.5
"""Mean cosine of random pairs from which on the embeddings are told to share one direction (60 degrees apart)."""
FEW_DIRECTIONS = 0.05
"""Share of the possible dimensions below which the entropy rank is told to be low."""
STRONG_HUBNESS = 1.4
"""Skewness of the k-occurrences above which hubs are told of (Schnitzer et al., JMLR 13, 2012, call it high)."""
ONE_POINT = 0.99
"""Mean cosine of random pairs from which on the embeddings are told to have collapsed to a point (8 degrees)."""

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class GeometryReport:
    """Shape of a set of embeddings.

    Attributes:
        samples: number of rows N.
        dimension: number of columns D.
        sampled_rows: rows whose pairs were compared: all, or a seeded sample.
        anisotropy: mean cosine of two different rows, over all pairs; 0 where directions are spread evenly.
        alignment: mean squared distance of the positive pairs, over all of them, in [0, 4]; small is good. None
            without labels.
        uniformity: log of the mean of exp(-2 d^2) over the pairs of the sampled rows, in [-8, 0]; small is
            good, and a sphere filled evenly in many dimensions comes to about -4.
        k: neighbours of each row in `hubness`.
        hubness: skewness of the k-occurrences: how often a sampled row is among the k nearest of the others. 0
            where all are neighbours alike, above 1.4 strong. It grows with the number of rows.
        hubs: the ten rows that occur most often, as (id, occurrences), the largest first. Rows that tie for the
            last of the k places share it.
        antihub_share: share of the sampled rows that are among no other's k nearest: no query near them
            finds them.
        participation_ratio: (sum of variances)^2 / sum of squared variances along the principal axes: how many
            axes carry most of the variance, from 1 to min(D, N - 1).
        entropy_rank: exp of the entropy of the singular values of the centred rows (as shares of their sum):
            the same with small axes counting more.
        suspect_count: pairs of sampled rows with different labels that are more alike than the typical positives
            of one of the classes. None without labels, as the next two.
        negative_pairs: pairs of sampled rows with different labels.
        suspects: the most suspicious of the suspects.
        warnings: what is wrong, in words; empty if nothing is.
    """

    samples: int
    dimension: int
    sampled_rows: int
    anisotropy: float
    alignment: float | None
    uniformity: float
    k: int
    hubness: float
    hubs: list[tuple[str | int, float]]
    antihub_share: float
    participation_ratio: float
    entropy_rank: float
    suspect_count: int | None
    negative_pairs: int | None
    suspects: list[FalseNegativeSuspect] | None
    warnings: list[str]


def describe_geometry(
    embeddings: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    ids: Sequence[str] | None = None,
    k: int = 10,
    sample: int = 10_000,
    suspects: int = 20,
    seed: int = 0,
) -> GeometryReport:
    """Measure how embeddings fill the sphere, and warn in words of what harms retrieval.

    Warnings are given for a mean cosine of random pairs of at least 0.5 (a narrow cone) or 0.99 (collapse to a
    point), an entropy rank below 5 % of the possible dimensions, which are min(D, N - 1), and k-occurrences with
    a skewness above 1.4. They are rules of thumb, meant to make someone look.

    A *false-negative suspect* is a pair with different labels whose cosine exceeds the typical positive cosine
    (the median) of at least one of its classes. A class of one sample has none; two such are held against the
    median over the classes. These pairs are often duplicates or wrong labels, and training pushes them apart.
    Those that also exceed the other class's, by most, are listed first. Medians are over all pairs of a class, or
    over those of 300 of its samples drawn with `seed`.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one here.
        labels: N integers of any size, or N strings; None leaves out what needs them.
        ids: names of the rows in `hubs` and `suspects`; row numbers when None.
        k: neighbours of each row for the hubness; 10 as in Radovanovic et al.
        sample: rows whose pairs are compared. Time grows with its square, memory does not.
        suspects: how many suspicious pairs to list.
        seed: of the sample.

    Returns:
        The report.

    Raises:
        InputError: malformed embeddings or labels, ids of another number, or k, sample or suspects out of
            range.

    Example:
        >>> rows = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [1.0, 0.02]]
        >>> report = describe_geometry(rows, ["cat", "cat", "dog", "dog", "pet"], k=1)
        >>> [(s.first, s.second, s.labels) for s in report.suspects]
        [(0, 4, ('cat', 'pet')), (1, 4, ('cat', 'pet'))]

    Source: T. Wang and P. Isola, "Understanding contrastive representation learning through alignment and
        uniformity on the hypersphere", ICML 2020 (alignment with alpha = 2, uniformity with t = 2); K. Ethayarajh,
        EMNLP 2019 (anisotropy); M. Radovanovic, A. Nanopoulos and M. Ivanovic, "Hubs in space", JMLR 11,
        2010; O. Roy and M. Vetterli, "The effective rank", EUSIPCO 2007.
    """
    unit = unit_rows(embeddings)
    samples = len(unit)
    rows = _sampled_rows(samples, k, sample, suspects, seed)
    if ids is not None and len(ids) != samples:
        raise InputError(f"{len(ids)} ids for {samples} embeddings; give one id per row")
    classes = None if labels is None else class_labels(labels, samples)
    pairs = measure_pairs(unit, rows, classes, k=k, keep=suspects, seed=seed)
    variances = _variances(unit)
    anisotropy = _mean_cosine(unit)
    rank = _entropy_rank(variances)
    return GeometryReport(
        samples=samples,
        dimension=unit.shape[1],
        sampled_rows=len(rows),
        anisotropy=anisotropy,
        alignment=None if classes is None else _alignment(unit, classes),
        uniformity=pairs.uniformity,
        k=k,
        hubness=_skewness(pairs.occurrences),
        hubs=_hubs(pairs, rows, ids),
        antihub_share=float((pairs.occurrences == 0).mean()),
        participation_ratio=_participation_ratio(variances),
        entropy_rank=rank,
        suspect_count=None if classes is None else pairs.suspect_count,
        negative_pairs=None if classes is None else pairs.negative_pairs,
        suspects=None if classes is None else [suspect.named(ids) for suspect in pairs.suspects],
        warnings=_warnings(anisotropy, rank, min(samples - 1, unit.shape[1]), _skewness(pairs.occurrences), k),
    )


def _sampled_rows(samples: int, k: int, sample: int, suspects: int, seed: int) -> NDArray[np.int64]:
    if samples < 3:
        raise InputError(f"{samples} embeddings have no geometry; give at least 3")
    if sample < 3:
        raise InputError(f"sample is {sample}; at least 3 rows are needed")
    if suspects < 0:
        raise InputError(f"suspects is {suspects}; give 0 or more")
    count = min(samples, sample)
    if not 1 <= k < count:
        raise InputError(f"k is {k}; with {count} rows compared it must be from 1 to {count - 1}")
    if count == samples:
        return np.arange(samples)
    return np.sort(np.random.default_rng([seed, 0]).choice(samples, count, replace=False))


def _mean_cosine(unit: Floats) -> float:
    """Mean cosine of all pairs of different rows, from the length of their sum."""
    count = len(unit)
    total = unit.sum(axis=0, dtype=np.float64)  # (D,)
    return float((total @ total - count) / (count * (count - 1)))


def _alignment(unit: Floats, classes: ClassLabels) -> float:
    """Mean squared distance of all positive pairs, from the length of each class's sum."""
    order = np.argsort(classes.codes, kind="stable")
    starts = np.cumsum(classes.sizes) - classes.sizes
    cosines = 0.0  # summed over ordered positive pairs
    block = max(1, _BLOCK_BYTES // (8 * len(classes.sizes)))  # columns at a time
    for first in range(0, unit.shape[1], block):
        part = unit[order, first : first + block].astype(np.float64)  # (N, block)
        sums = np.add.reduceat(part, starts, axis=0)  # (C, block)
        cosines += float((sums**2).sum() - (part**2).sum())
    pairs = int((classes.sizes * (classes.sizes - 1)).sum())
    return max(0.0, 2.0 - 2.0 * cosines / pairs)


def _variances(unit: Floats) -> NDArray[np.float64]:
    """Variances along the principal axes, (D,)."""
    mean = unit.mean(axis=0, dtype=np.float64)  # (D,)
    scatter = np.zeros((unit.shape[1], unit.shape[1]))
    block = max(1, _BLOCK_BYTES // (8 * unit.shape[1]))
    for first in range(0, len(unit), block):
        centred = unit[first : first + block] - mean  # (block, D) float64
        scatter += centred.T @ centred
    values = np.linalg.eigvalsh(scatter / len(unit))
    # What rounding leaves on axes without variance would count as many small ones in the entropy.
    rounding = np.finfo(np.float64).eps * len(values) * values.max()
    return np.where(values > max(rounding, np.finfo(unit.dtype).eps ** 2), values, 0.0)


def _participation_ratio(variances: NDArray[np.float64]) -> float:
    squares = float((variances**2).sum())
    return float(variances.sum()) ** 2 / squares if squares > 0 else 1.0


def _entropy_rank(variances: NDArray[np.float64]) -> float:
    singular = np.sqrt(variances[variances > 0])
    if not len(singular):
        return 1.0
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _skewness(values: NDArray[np.float64]) -> float:
    centred = values - values.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / variance**1.5 if variance > 1e-12 else 0.0


def _hubs(pairs: PairStatistics, rows: NDArray[np.int64], ids: Sequence[str] | None) -> list[tuple[str | int, float]]:
    top = np.argsort(-pairs.occurrences, kind="stable")[:10]
    return [(int(rows[i]) if ids is None else ids[rows[i]], float(pairs.occurrences[i])) for i in top]


def _warnings(anisotropy: float, rank: float, dimensions: int, hubness: float, k: int) -> list[str]:
    found = []
    if anisotropy >= ONE_POINT:
        found.append(
            f"The embeddings have collapsed to nearly one point: random pairs have a mean cosine of {anisotropy:.3f}."
        )
    elif anisotropy >= NARROW_CONE:
        found.append(
            f"The embeddings lie in a narrow cone: random pairs have a mean cosine of {anisotropy:.2f}, so all scores "
            "look high; compare scores with each other, or subtract the mean embedding."
        )
    if rank < FEW_DIRECTIONS * dimensions:
        found.append(
            f"The embeddings use few directions: an entropy rank of {rank:.1f} out of {dimensions} (dimensional "
            "collapse); fewer dimensions would hold the same."
        )
    if hubness > STRONG_HUBNESS:
        found.append(
            f"Some embeddings are hubs: how often a row is among the {k} nearest of others has a skewness of "
            f"{hubness:.1f}; look at the rows in `hubs`, which turn up for many queries whatever they ask."
        )
    return found

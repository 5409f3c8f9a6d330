"""Scores of labelled samples, grouped into the units that are independent: classes, and disjoint pairs of classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import ArrayLike, Floats, class_labels, unit_rows

STEPS = 1_000_000  # thresholds are multiples of one millionth
SLACK = 5e-7  # cosines of the same texts differ by about this much between machines and batch sizes in float32
_SAMPLES = 32  # of a class, where every pair is looked at; the mean over them stays unbiased
_ROUNDS = 16
_SCORES = 4_000_000
_CHUNK = 1 << 16


@dataclass(frozen=True)
class ClassSet:
    """Samples sorted by class.

    Attributes:
        unit: (N, D), rows of length one.
        codes: int64 (N,), ascending class of each row.
        names: C labels, ascending.
        sizes: int64 (C,).
        starts: int64 (C,), first row of each class.
    """

    unit: Floats
    codes: NDArray[np.int64]
    names: list[int] | list[str]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    def thinned(self, rng: np.random.Generator, samples: int = _SAMPLES) -> ClassSet:
        """The set with at most `samples` of each class, drawn at random."""
        if int(self.sizes.max()) <= samples:
            return self
        order = np.lexsort((rng.random(len(self.codes)), self.codes))  # (N,), shuffled within classes
        keep = np.sort(order[np.arange(len(order)) - self.starts[self.codes] < samples])
        return _sorted_set(self.unit[keep], self.codes[keep], self.names)


@dataclass(frozen=True)
class UnitScores:
    """Scores of the pairs of M rounds of n units each.

    Attributes:
        scores: (S,), unit after unit, round after round.
        counts: int64 (M * n,), scores of each unit, at least one.
        shape: (M, n).
    """

    scores: Floats
    counts: NDArray[np.int64]
    shape: tuple[int, int]

    def share_at_least(self, threshold: float) -> NDArray[np.float64]:
        """The share of each unit's scores that reach the threshold, (M, n)."""
        starts = np.cumsum(self.counts) - self.counts
        reached = np.add.reduceat(self.scores >= threshold, starts, dtype=np.int64)  # (M * n,)
        return (reached / self.counts).reshape(self.shape)


def class_set(embeddings: ArrayLike, labels: ArrayLike) -> ClassSet:
    """Check the input, scale to length one, and sort by class."""
    unit = unit_rows(embeddings)
    classes = class_labels(labels, len(unit))
    order = np.argsort(classes.codes, kind="stable")
    return _sorted_set(unit[order], classes.codes[order], classes.names)


def matchings(classes: NDArray[np.int64], rng: np.random.Generator, rounds: int) -> NDArray[np.int64]:
    """Perfect matchings of the classes: a random round robin, in which no two rounds share a pair.

    Args:
        classes: int64 (C,), the classes to match; of an odd number, one rests in each round.
        rng: draws the seating, so that every matching is as likely as any other.
        rounds: how many; at most C - 1 (C for odd C) exist.

    Returns:
        int64 (rounds, C // 2, 2).
    """
    seats = rng.permutation(classes)
    if len(seats) % 2:
        seats = np.append(seats, -1)  # whoever meets -1 rests
    count = len(seats) - 1
    steps = np.arange(1, (count + 1) // 2)  # (C / 2 - 1,)
    turn = rng.permutation(count)[: min(rounds, count)][:, None]  # (rounds, 1)
    first = np.concatenate([turn, (turn + steps) % count], axis=1)  # (rounds, C / 2)
    second = np.concatenate([np.full_like(turn, count), (turn - steps) % count], axis=1)
    pairs = seats[np.stack([first, second], axis=2)]  # (rounds, C / 2, 2)
    played = (pairs >= 0).all(axis=2)
    return np.asarray(pairs[played].reshape(len(turn), -1, 2))


def random_matchings(classes: ClassSet, among: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many rounds of matched classes as are worth their time: 16, or fewer when a round has many scores."""
    typical = float(classes.sizes[among].mean()) ** 2 * (len(among) // 2)
    return matchings(among, rng, int(min(_ROUNDS, max(1.0, _SCORES / typical))))


def cross_scores(classes: ClassSet, rounds: NDArray[np.int64]) -> UnitScores:
    """Cosines between the two classes of each matched pair; `rounds` is (M, n, 2)."""
    first, second = rounds.reshape(-1, 2).T  # (M * n,) each
    width = classes.sizes[second]
    counts = classes.sizes[first] * width
    unit = np.repeat(np.arange(len(counts)), counts)  # (S,)
    offset = np.arange(len(unit)) - (np.cumsum(counts) - counts)[unit]
    left = classes.starts[first][unit] + offset // width[unit]
    right = classes.starts[second][unit] + offset % width[unit]
    return UnitScores(_cosines(classes.unit, left, right), counts, (rounds.shape[0], rounds.shape[1]))


def positive_scores(classes: ClassSet, among: NDArray[np.int64]) -> UnitScores:
    """Cosines of the pairs within each class; one round, one unit per class, each of two samples or more."""
    left, right, counts = [], [], []
    for size in np.unique(classes.sizes[among]).tolist():
        row, column = np.triu_indices(size, k=1)
        start = classes.starts[among[classes.sizes[among] == size]][:, None]
        left.append((start + row).ravel())  # (classes * pairs,)
        right.append((start + column).ravel())
        counts.append(np.full(len(start), len(row)))
    order = np.argsort(np.concatenate(left), kind="stable")  # back to the order of `among`, which ascends
    first, second = np.concatenate(left)[order], np.concatenate(right)[order]
    sizes = classes.sizes[among]
    return UnitScores(_cosines(classes.unit, first, second), sizes * (sizes - 1) // 2, (1, len(among)))


def smallest_threshold(holds: Callable[[float], bool]) -> float | None:
    """The smallest multiple of a millionth in [-1, 1] at which `holds`; it must stay true above. None: nowhere."""
    if not holds(1.0):
        return None
    low, high = -STEPS - 1, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle / STEPS) else (middle, high)
    return high / STEPS


def just_above(score: float) -> float:
    """The smallest multiple of a millionth that a score does not reach, even when it is rounded differently."""
    return (math.floor((score + SLACK) * STEPS) + 1) / STEPS


def _sorted_set(unit: Floats, codes: NDArray[np.int64], names: list[int] | list[str]) -> ClassSet:
    sizes = np.bincount(codes, minlength=len(names)).astype(np.int64)
    return ClassSet(unit, codes, names, sizes, np.cumsum(sizes) - sizes)


def _cosines(unit: Floats, left: NDArray[np.int64], right: NDArray[np.int64]) -> Floats:
    scores = np.empty(len(left), dtype=unit.dtype)
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        np.einsum("ij,ij->i", unit[left[part]], unit[right[part]], out=scores[part])
    return scores

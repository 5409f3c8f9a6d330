"""Classes whose rates at any threshold are known: what the calibration benchmark draws its data sets from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRIOR = 0.5
SAMPLES = 4  # of each class
_HARMONICS = np.arange(1, 401)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class Circle:
    """Classes are places on the circle; a share of them crowds around one place, and spreads differ between classes."""

    name: str = "circle"
    crowded: float = 0.2
    crowd_width: float = 0.35
    spread: float = 0.12
    spread_sigma: float = 0.5

    def draw(self, classes: int, rng: np.random.Generator) -> Floats:
        """Unit vectors (classes, samples, dimensions)."""
        return _points(self.angles(classes, rng))

    def angles(self, classes: int, rng: np.random.Generator) -> Floats:
        """Angles (classes, samples)."""
        crowd = rng.normal(0.0, self.crowd_width, classes)
        place = np.where(rng.random(classes) < self.crowded, crowd, rng.uniform(-np.pi, np.pi, classes))
        spread = self.spread * np.exp(rng.normal(0.0, self.spread_sigma, classes))
        return place[:, None] + spread[:, None] * rng.normal(size=(classes, SAMPLES))  # (classes, samples)

    @functools.cache  # noqa: B019 - three generators live as long as the program
    def truth(self) -> Truth:
        """The true rates."""
        spreads = self.spread * np.exp(self.spread_sigma * _NODES)  # (41,)
        damping = np.exp(-0.5 * np.outer(_HARMONICS**2, spreads**2)) @ _WEIGHTS  # (K,)
        # Real Fourier coefficients of a sample's angle, and of the difference of two samples of a class.
        sample = self.crowded * np.exp(-0.5 * (_HARMONICS * self.crowd_width) ** 2) * damping
        within = np.exp(-np.outer(_HARMONICS**2, spreads**2)) @ _WEIGHTS

        def far(threshold: float) -> float:
            return float(_closer_than(math.acos(np.clip(threshold, -1, 1)), sample**2))

        def miss(threshold: float) -> float:
            return 1.0 - float(_closer_than(math.acos(np.clip(threshold, -1, 1)), within))

        def own_thresholds(alpha: float) -> Floats:
            angles = self.angles(20_000, np.random.default_rng(99))
            used = _HARMONICS[:60]  # the crowd's width damps the rest to nothing
            weights = sample[:60] * np.cos(angles[:, :, None] * used).mean(axis=1)  # (20000, 60)
            low, high = np.zeros(len(angles)), np.full(len(angles), np.pi)
            for _ in range(40):
                middle = (low + high) / 2
                rate = (middle + 2 * (weights * np.sin(np.outer(middle, used)) / used).sum(axis=1)) / np.pi
                low, high = np.where(rate <= alpha, middle, low), np.where(rate <= alpha, high, middle)
            return np.sort(np.cos(low))

        return Truth(far, miss, own_thresholds)


@dataclass(frozen=True)
class Sphere:
    """Classes are directions in 16 dimensions; hubs share a direction, and spreads differ between classes."""

    name: str = "sphere"
    dimension: int = 16
    hubs: float = 0.15

    def draw(self, classes: int, rng: np.random.Generator) -> Floats:
        """Unit vectors (classes, samples, dimensions)."""
        centre = rng.normal(size=(classes, self.dimension))
        centre[:, 0] += 3.0 * (rng.random(classes) < self.hubs)
        spread = 0.5 * np.exp(rng.normal(0.0, 0.4, (classes, 1, 1)))
        return unit_rows(centre[:, None] + spread * rng.normal(size=(classes, SAMPLES, self.dimension)))

    @functools.cache  # noqa: B019 - three generators live as long as the program
    def truth(self) -> Truth:
        """The true rates."""
        rng = np.random.default_rng(98)
        many = self.draw(20_000, rng)  # (20000, 4, 16)
        one = many[:, 0].astype(np.float32)
        across = np.sort(np.concatenate([(one * np.roll(one, shift, axis=0)).sum(axis=1) for shift in range(1, 201)]))
        first, second = np.triu_indices(SAMPLES, 1)
        wide = self.draw(200_000, rng)
        inside = np.sort((wide[:, first] * wide[:, second]).sum(axis=2).ravel())
        new = self.draw(2_000, rng).astype(np.float32)

        def own_thresholds(alpha: float) -> Floats:
            found = []
            for block in np.array_split(new, 20):
                scores = (block @ one.T).reshape(len(block), -1)  # (classes, 4 * 20000)
                place = scores.shape[1] - math.floor(alpha * scores.shape[1]) - 1
                found.append(np.partition(scores, place, axis=1)[:, place])
            return np.sort(np.concatenate(found).astype(np.float64))

        return Truth(
            far=lambda t: 1.0 - float(np.searchsorted(across, t)) / len(across),
            miss=lambda t: float(np.searchsorted(inside, t)) / len(inside),
            own_thresholds=own_thresholds,
        )


@dataclass(frozen=True)
class Truth:
    """True rates of a generator at a threshold, and the true own thresholds of new classes at alpha, ascending."""

    far: Callable[[float], float]
    miss: Callable[[float], float]
    own_thresholds: Callable[[float], Floats]

    def wrong_share(self, threshold: float) -> float:
        """The share of the accepted pairs that is wrong, at the prior."""
        right, wrong = PRIOR * (1.0 - self.miss(threshold)), (1.0 - PRIOR) * self.far(threshold)
        return wrong / (right + wrong) if right + wrong > 0 else 0.0


def _closer_than(angle: float, coefficients: Floats) -> float:
    """Chance that a difference of angles with these Fourier coefficients lies within +- angle."""
    return (angle + 2.0 * (coefficients * np.sin(_HARMONICS * angle) / _HARMONICS).sum()) / np.pi


def _points(angles: Floats) -> Floats:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def unit_rows(points: Floats) -> Floats:
    """Scaled to length one along the last axis."""
    return points / np.linalg.norm(points, axis=-1, keepdims=True)

"""Learn then Test for the precision, which is not monotone in the threshold: https://arxiv.org/abs/2110.01052.

With a share p of matching pairs among those judged, and F and M the chances that a pair across classes is accepted and
that a matching one is missed, at most a share a of the accepted pairs is wrong exactly when

    (1 - a) (1 - p) F + a p M <= a p.

The left side is the mean of a bounded value per pair of classes, so it is tested as a mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.thresholds.bounds import MeanTest, smallest_level
from nearfar.eval.thresholds.units import (
    SLACK,
    STEPS,
    ClassSet,
    UnitScores,
    cross_scores,
    positive_scores,
    random_matchings,
)

_PILOT = 0.25
_STEPS = 128


class _Costs:
    """The values per pair of classes at any threshold, scaled to [0, 1].

    Attributes:
        limit: the scaled right side, which the mean must not exceed.
    """

    def __init__(self, classes: ClassSet, among: NDArray[np.int64], prior: float, rng: np.random.Generator) -> None:
        self.rounds = random_matchings(classes, among, rng)  # (M, n, 2)
        self.cross: UnitScores = cross_scores(classes, self.rounds)
        self.within: UnitScores = positive_scores(classes, among)
        self.prior = prior
        self.place = np.searchsorted(among, self.rounds)  # (M, n, 2), which unit of `within` a class is

    def limit(self, alpha: float) -> float:
        return alpha * self.prior / self._scale(alpha)

    def values(self, threshold: float, alpha: float) -> NDArray[np.float64]:
        """The costs (M, n)."""
        wrong = self.cross.share_at_least(threshold - SLACK)  # (M, n)
        missed = (1.0 - self.within.share_at_least(threshold + SLACK)[0])[self.place].mean(axis=2)  # (M, n)
        cost = (1.0 - alpha) * (1.0 - self.prior) * wrong + alpha * self.prior * missed
        return np.asarray(cost / self._scale(alpha))

    def _scale(self, alpha: float) -> float:
        return (1.0 - alpha) * (1.0 - self.prior) + alpha * self.prior


def certify_precision(
    classes: ClassSet, alpha: float, delta: float, prior: float, rng: np.random.Generator
) -> tuple[float, int]:
    """The smallest threshold that the fixed sequence certifies, and the number of pairs of classes tested.

    The pilot classes choose where the sequence starts and how far its steps reach. They are independent of the
    classes tested, so the sequence is fixed as far as the test is concerned, and needs no correction.

    Raises:
        InputError: the first threshold of the sequence already fails.
    """
    large = rng.permutation(np.flatnonzero(classes.sizes >= 2))
    cut = max(2, round(_PILOT * len(large)))
    if len(large) - cut < 2:
        raise InputError(f"{len(large)} classes have two or more samples; a precision needs at least 4 of them")
    pilot = _Costs(classes, np.sort(large[:cut]), prior, rng)
    tested = _Costs(classes, np.sort(large[cut:]), prior, rng)
    units = tested.cross.shape[1]

    def certified(threshold: float, level: float) -> bool:
        return MeanTest.of(tested.limit(level), units, delta).refutes(tested.values(threshold, level))

    sequence = _sequence(pilot, alpha)
    if not certified(sequence[0], alpha):
        smallest = smallest_level(lambda level: certified(_sequence(pilot, level)[0], level))
        can = "they certify none" if smallest is None else f"the smallest alpha they can is {smallest}"
        raise InputError(
            f"{units} disjoint pairs of classes cannot certify alpha={alpha} for risk='precision' at delta={delta} and "
            f"prior={prior}; {can}"
        )
    threshold = sequence[0]
    for candidate in sequence[1:]:
        if not certified(candidate, alpha):
            break
        threshold = candidate
    return threshold, units


def _sequence(pilot: _Costs, alpha: float) -> list[float]:
    """Descending thresholds: from the lowest cost on the pilot, in steps of a 64th of the way to the limit."""
    scores = np.concatenate([pilot.within.scores, pilot.cross.scores])
    grid = np.unique(np.round(np.quantile(scores, np.linspace(0.0, 1.0, _STEPS)) * STEPS))[::-1] / STEPS
    costs = np.array([pilot.values(float(t), alpha).mean() for t in grid])
    best = int(np.argmin(costs))
    over = np.flatnonzero(costs[best:] > pilot.limit(alpha))
    reach = float(grid[best] - grid[best + over[0]]) if len(over) else float(grid[best] - grid[-1])
    step = max(round(reach / 64 * STEPS), 1)
    return [at / STEPS for at in range(round(grid[best] * STEPS), -STEPS - 1, -step)]

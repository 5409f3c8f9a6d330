"""What a few independent units can prove about a mean or a share, exactly at any number of units.

Means of values in [0, 1] are tested by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting", JRSS B 2024, https://arxiv.org/abs/2010.09686): a fortune that stakes against the claim "the mean is at
least m" grows by the factor ``1 + stake * (m - x)`` with each unit x. Under the claim the expected fortune is at most
1, so a fortune of 1 / delta refutes it at level delta. Shares of yes-or-no units are tested by the exact binomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 60


@dataclass(frozen=True)
class MeanTest:
    """A test of "the mean is at least `mean`" for independent values in [0, 1], at level `delta`.

    The stakes are constant and fixed before the data is seen, and each factor falls as its value rises. So the
    fortune depends neither on the order of the units nor, when values are shares of accepted pairs, on anything but a
    monotone function of the threshold: refuted at one threshold, the claim is refuted at every stricter one.
    Three stakes share the fortune: the best one for yes-or-no values, which holds its own against the binomial; the
    largest, for values that hardly vary; and their geometric mean. Hoeffding-Bentkus bounds know nothing of the
    variance, which per-pair means make small, and were two to three times more conservative on simulated classes.

    Attributes:
        mean: the claim, in (0, 1).
        delta: level of the test.
        stakes: float64 (J,).
    """

    mean: float
    delta: float
    stakes: NDArray[np.float64]

    @classmethod
    def of(cls, mean: float, units: int, delta: float) -> MeanTest:
        """The test for `units` independent values."""
        largest = 0.99 / (1.0 - mean)  # above 1 / (1 - mean) a value of 1 would leave a debt
        seen = _refuting_rate(mean, units, delta)
        binary = min(largest, (mean - seen) / (mean * (1.0 - mean)))
        return cls(mean, delta, np.array([binary, math.sqrt(binary * largest), largest]))

    def log_fortune(self, values: NDArray[np.float64]) -> float:
        """Log of the fortune, averaged over the stakes and over the rounds.

        Args:
            values: float64 (M, n) in [0, 1]. The n values of one round are independent. The M rounds may depend on
                one another in any way: a mean of fortunes still has an expectation of at most 1 (Vovk and Wang,
                "E-values", Annals of Statistics 2021), where a mean of the values would not keep the bound of n units.
        """
        growth = np.log1p(self.stakes[:, None, None] * (self.mean - values)).sum(axis=-1)  # (J, M)
        peak = float(growth.max())
        return peak + math.log(float(np.exp(growth - peak).mean()))

    def refutes(self, values: NDArray[np.float64]) -> bool:
        """Whether the values (M, n) refute the claim, so that the mean is certified to lie below it."""
        return self.log_fortune(values) >= math.log(1.0 / self.delta)


def allowed_failures(units: int, share: float, delta: float) -> int:
    """The largest k with P(Binomial(units, share) <= k) <= delta, or -1 when even k = 0 is too likely."""
    from scipy.special import bdtr  # type: ignore[import-untyped]

    chances = bdtr(np.arange(units), units, share)  # (units,)
    return int(np.searchsorted(chances, delta, side="right")) - 1


def binomial_tail(count: int, units: int, share: float) -> float:
    """P(Binomial(units, share) >= count)."""
    from scipy.special import bdtrc

    return 1.0 if count <= 0 else float(bdtrc(count - 1, units, share))


def smallest_level(certifies: Callable[[float], bool]) -> float | None:
    """The smallest level in (0, 1) that is certified, rounded up to two digits; None when none is.

    Args:
        certifies: true for large levels, false for small ones.
    """
    low, high = 1e-9, 0.99
    if not certifies(high):
        return None
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if certifies(middle) else (middle, high)
    digit = 10.0 ** (math.floor(math.log10(high)) - 1)
    rounded = math.ceil(high / digit) * digit
    # The level that is named must work when it is asked for.
    while rounded < 1.0 and not certifies(float(f"{rounded:.2g}")):
        rounded += digit
    return float(f"{rounded:.2g}") if rounded < 1.0 else None


def _refuting_rate(mean: float, units: int, delta: float) -> float:
    """The largest observed rate of yes-or-no units at which Chernoff's bound refutes `mean`; 0 when none does."""
    needed = math.log(1.0 / delta) / units
    if -math.log1p(-mean) <= needed:
        return 0.0
    low, high = 0.0, mean
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _divergence(middle, mean) > needed else (low, middle)
    return low


def _divergence(rate: float, mean: float) -> float:
    part = rate * math.log(rate / mean) if rate > 0 else 0.0
    return part + (1.0 - rate) * math.log((1.0 - rate) / (1.0 - mean))

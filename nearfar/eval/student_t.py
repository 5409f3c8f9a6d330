"""Student's t distribution without scipy: tail probabilities and quantiles."""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300
_PRECISION = 1e-15
_MOST_TERMS = 100_000


def two_sided_p(t: float, df: float) -> float:
    """Probability that a t variable is at least as far from zero as `t`.

    Args:
        t: the statistic; infinite values give 0.
        df: degrees of freedom, above 0.

    Returns:
        A probability in [0, 1], precise relative to its size far into the tail.

    Example:
        >>> round(two_sided_p(2.0, 10), 6)
        0.073388

    Source: I_x(df/2, 1/2) with x = df / (df + t^2), Abramowitz and Stegun 26.7.1.
    """
    if math.isinf(t):
        return 0.0
    square = t * t
    return _incomplete_beta(df / 2, 0.5, df / (df + square), square / (df + square))


@lru_cache(maxsize=256)
def t_quantile(level: float, df: float) -> float:
    """The value below which a t variable falls with probability `level`.

    Args:
        level: a probability strictly between 0 and 1.
        df: degrees of freedom, above 0.

    Example:
        >>> round(t_quantile(0.975, 10), 6)
        2.228139
    """
    if level == 0.5:
        return 0.0
    tail = 2 * min(level, 1 - level)
    low, high = 0.0, 1.0
    while two_sided_p(high, df) > tail:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, df) > tail else (low, middle)
    return math.copysign((low + high) / 2, level - 0.5)


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Regularised incomplete beta function I_x(a, b); y = 1 - x is given apart to keep its digits."""
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    front = math.exp(log_front)
    # The fraction converges fast below the distribution's mean; above it the mirrored one does.
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, y) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Abramowitz and Stegun 26.5.8, evaluated forwards by the modified Lentz method."""
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY

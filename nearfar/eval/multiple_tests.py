"""Many tests at once: p-values adjusted so that one level holds for the whole family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values by Holm's step-down method.

    Calling every adjusted value below alpha a finding makes the chance of even one false finding at most
    alpha, however the tests depend on each other. Never less powerful than Bonferroni.

    Args:
        p_values: T numbers in [0, 1].

    Returns:
        float64 array (T,), in the order given.

    Raises:
        InputError: a value outside [0, 1] or NaN, or not one-dimensional.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6, 1979.
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)  # (T,) smallest p times T, the next times T - 1, ...
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values by Benjamini and Hochberg's step-up method.

    Calling every adjusted value below alpha a finding keeps the expected share of false ones among the
    findings at most alpha. Proven for independent and for positively dependent tests, which metrics of the
    same queries are, roughly; the stricter `holm` needs no such condition.

    Args:
        p_values: T numbers in [0, 1].

    Returns:
        float64 array (T,), in the order given.

    Raises:
        InputError: a value outside [0, 1] or NaN, or not one-dimensional.

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03])
        array([0.03, 0.04, 0.04])

    Source: Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", Journal of the Royal
        Statistical Society B 57, 1995.
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")[::-1]  # largest first
    steps = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(steps).clip(max=1.0)
    return adjusted


def _checked(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise InputError(f"p-values have shape {p.shape}; give a flat list of them")
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise InputError(f"p-value {float(p[wrong][0])} is not between 0 and 1")
    return p

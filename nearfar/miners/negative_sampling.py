"""Which of the documents that may be negatives are taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError, UnknownNameError
from nearfar.miners.negative_filters import Floats, Mask

Sampling = Literal["top", "random", "softmax"]
Columns = npt.NDArray[np.int64]


def check_sampling(sampling: str, temperature: float) -> None:
    """Raise `UnknownNameError` for an unknown strategy, `InputError` for a temperature that is not above 0."""
    if sampling not in get_args(Sampling):
        raise UnknownNameError("sampling strategy", sampling, get_args(Sampling))
    if not (temperature > 0 and np.isfinite(temperature)):
        raise InputError(f"temperature={temperature!r} must be above 0 and finite")


def sample(
    scores: Floats,
    allowed: Mask,
    count: int,
    *,
    sampling: Sampling = "top",
    temperature: float = 0.05,
    seed: int = 0,
    numbers: Sequence[int] | Columns | None = None,
) -> Columns:
    """Take up to `count` allowed columns of each row, without replacement.

    Args:
        scores: (Q, k), best first.
        allowed: (Q, k), which columns may be taken.
        count: to take from each row.
        sampling: "top" takes the first ones, "random" any with the same chance, "softmax" with a chance that grows
            as ``exp(score / temperature)``.
        temperature: of "softmax".
        seed: of all draws.
        numbers: (Q,) a number of each row; default 0, 1, 2 ... A row's draw depends on the seed and its number alone,
            so rows may be handled in portions of any size.

    Returns:
        (Q, count) columns in rising order, -1 where there are too few.

    Example:
        >>> import numpy as np
        >>> sample(np.array([[0.9, 0.8, 0.7]]), np.array([[False, True, True]]), 3)
        array([[ 1,  2, -1]])
    """
    numbers = range(len(scores)) if numbers is None else numbers
    keys = np.where(allowed, _keys(scores, allowed, sampling, temperature, seed, numbers), np.inf)  # (Q, k)
    width = min(count, keys.shape[1])
    columns = np.argsort(keys, axis=1, kind="stable")[:, :width]
    taken = np.take_along_axis(allowed, columns, axis=1)
    beyond = keys.shape[1]  # sorts what is missing behind every column
    columns = np.sort(np.where(taken, columns, beyond), axis=1)
    columns[columns == beyond] = -1
    return np.pad(columns, ((0, 0), (0, count - width)), constant_values=-1).astype(np.int64)  # (Q, count)


def _keys(
    scores: Floats, allowed: Mask, sampling: Sampling, temperature: float, seed: int, numbers: Sequence[int] | Columns
) -> npt.NDArray[np.float64]:
    """(Q, k) sort keys: the columns with the smallest ones are taken."""
    rows, width = scores.shape
    if sampling == "top":
        return np.tile(np.arange(width, dtype=np.float64), (rows, 1))
    draws = [np.random.default_rng([seed, int(number)]) for number in numbers]
    if sampling == "random":
        return np.stack([draw.random(width) for draw in draws])
    # The largest of score / temperature + Gumbel noise are a softmax sample without replacement.
    noise = np.stack([draw.gumbel(size=width) for draw in draws])  # (Q, k)
    keys: npt.NDArray[np.float64] = -np.where(allowed, scores, 0).astype(np.float64) / temperature - noise
    return keys

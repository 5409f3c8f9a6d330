"""The rows of a training set by class, and batches of rows made from groups of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError

Integers = NDArray[np.int64]


class ClassRows:
    """Which rows belong to which class.

    Args:
        labels: a label a row, (rows,): integers, or strings.

    Attributes:
        labels: the distinct labels in order, (N,); class c has label ``labels[c]``.
        classes: class of each row, (rows,).
        sizes: rows of each class, (N,).

    Raises:
        InputError: no rows, or labels that are not one a row.
    """

    def __init__(self, labels: NDArray[np.generic]) -> None:
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iuUO":
            raise InputError(
                f"labels has shape {labels.shape} and dtype {labels.dtype}; mining needs one integer or string a row"
            )
        self.labels, classes = np.unique(labels, return_inverse=True)
        self.classes: Integers = classes.astype(np.int64)
        self.sizes: Integers = np.bincount(self.classes)
        self._starts: Integers = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return len(self.labels)

    def visits(self, samples: int, once: bool) -> Integers:
        """How often an epoch draws ``samples`` rows of each class: once, or until its rows are used, (N,)."""
        return np.ones_like(self.sizes) if once else np.maximum(1, self.sizes // samples)

    def draw(self, groups: Sequence[Integers], samples: int, random: np.random.Generator) -> list[list[int]]:
        """Rows of each group: ``samples`` of each of its classes, in random choice; fewer where a class has fewer.

        A class that stands in several groups gives each of them other rows.
        """
        if not groups:
            return []
        flat = np.concatenate(groups)
        by_class = np.lexsort((random.random(len(self.classes)), self.classes))  # rows, shuffled within classes
        place = _ordinal(flat)[:, None] * samples + np.arange(samples)  # (classes drawn, samples)
        exists = place < self.sizes[flat][:, None]
        rows = by_class[np.where(exists, self._starts[flat][:, None] + place, 0)]
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return [
            chosen[there].tolist() for chosen, there in zip(np.split(rows, ends), np.split(exists, ends), strict=True)
        ]


def _ordinal(values: Integers) -> Integers:
    """How many earlier entries are equal to each entry."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    ordinal = np.empty_like(values)
    ordinal[order] = np.arange(len(values)) - first
    return ordinal

"""All pairs of a labelled set, in blocks of rows, never as one N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import ArrayLike, class_labels, unit_rows

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class PairSet:
    """Samples sorted by class, ready to be compared.

    Attributes:
        unit: float64 (N, D), rows of length one, sorted by class.
        codes: int64 (N,), ascending class of each row.
        names: C labels, ascending.
        sizes: int64 (C,), samples of each class.
    """

    unit: NDArray[np.float64]
    codes: NDArray[np.int64]
    names: list[int] | list[str]
    sizes: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of each class, int64 (C,)."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def positive_pairs(self) -> int:
        """Unordered pairs within a class."""
        return int((self.sizes * (self.sizes - 1) // 2).sum())

    @property
    def negative_pairs(self) -> int:
        """Unordered pairs across classes."""
        samples = len(self.codes)
        return samples * (samples - 1) // 2 - self.positive_pairs

    def blocks(self) -> Iterator[PairBlock]:
        """Every unordered pair once: each block compares some rows with all later ones."""
        samples = len(self.codes)
        first = 0
        while first < samples - 1:
            last = min(samples, first + max(1, _BLOCK_BYTES // (8 * (samples - first))))
            cosines = self.unit[first:last] @ self.unit[first:].T  # (rows, N - first)
            ordered = np.triu(np.ones(cosines.shape, dtype=bool), k=1)
            same = self.codes[first:last, None] == self.codes[None, first:]
            yield PairBlock(first, cosines, ordered & same, ordered & ~same)
            first = last


@dataclass(frozen=True)
class PairBlock:
    """Rows ``first, first + 1, ...`` against columns ``first, ..., N - 1``.

    Attributes:
        first: row and column of the upper left entry.
        cosines: float64 (rows, N - first).
        positive: bool, entries that are pairs within a class.
        negative: bool, entries that are pairs across classes.
    """

    first: int
    cosines: NDArray[np.float64]
    positive: NDArray[np.bool_]
    negative: NDArray[np.bool_]


def pair_set(embeddings: ArrayLike, labels: ArrayLike) -> PairSet:
    """Check the input, scale to length one in float64, and sort by class."""
    unit = unit_rows(embeddings, dtype=np.float64)
    classes = class_labels(labels, len(unit))
    order = np.argsort(classes.codes, kind="stable")
    return PairSet(
        unit=np.asarray(unit[order], dtype=np.float64),
        codes=classes.codes[order],
        names=classes.names,
        sizes=classes.sizes,
    )


def l2_distances(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """L2 distances of unit vectors with these cosines; accurate to about 1e-8 where vectors coincide."""
    return np.sqrt(np.maximum(2.0 - 2.0 * cosines, 0.0))

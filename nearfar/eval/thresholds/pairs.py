"""All pairs of a labelled set, in blocks of rows, never as one N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import ArrayLike, Floats, class_labels, unit_rows

_BLOCK_BYTES = 32 << 20
_TILE = (512, 2048)  # a few MB: the products run at full speed and what follows finds them in the cache


@dataclass(frozen=True)
class PairSet:
    """Samples sorted by class, ready to be compared.

    Attributes:
        unit: float32 or float64 (N, D), rows of length one, sorted by class.
        codes: int64 (N,), ascending class of each row.
        names: C labels, ascending.
        sizes: int64 (C,), samples of each class.
    """

    unit: Floats
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
            last = min(samples, first + max(1, _BLOCK_BYTES // (self.unit.itemsize * (samples - first))))
            cosines = self.unit[first:last] @ self.unit[first:].T  # (rows, N - first)
            ordered = np.triu(np.ones(cosines.shape, dtype=bool), k=1)
            same = self.codes[first:last, None] == self.codes[None, first:]
            yield PairBlock(first, cosines, ordered & same, ordered & ~same)
            first = last

    def tiles(self) -> Iterator[PairTile]:
        """Every unordered pair once, in tiles that mostly hold nothing but pairs across classes."""
        samples = len(self.codes)
        ends = np.cumsum(self.sizes)
        for first in range(0, samples, _TILE[0]):
            last = min(first + _TILE[0], samples)
            tail = int(ends[self.codes[last - 1]])  # sorted by class: from here on no row has a class mate
            for start, stop, mixed in ((first, tail, True), (tail, samples, False)):
                for column in range(start, stop, _TILE[1]):
                    columns = slice(column, min(column + _TILE[1], stop))
                    yield PairTile(first, column, self.unit[first:last] @ self.unit[columns].T, mixed)

    def kinds(self, tile: PairTile) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which entries of a tile are pairs within a class, and which across; neither: the other half of a pair."""
        rows, columns = tile.cosines.shape
        row, column = np.arange(tile.first, tile.first + rows), np.arange(tile.column, tile.column + columns)
        later = column > row[:, None]
        same = self.codes[column] == self.codes[row, None]
        return later & same, later & ~same

    def negative_sample(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Cosines of `count` pairs across classes, drawn with replacement and each as likely as any other."""
        strangers = len(self.codes) - self.sizes  # (C,)
        chances = np.cumsum((self.sizes * strangers).astype(np.float64))
        cosines = np.empty(count)
        for start in range(0, count, 1 << 16):
            part = slice(start, min(start + (1 << 16), count))
            code = np.searchsorted(chances, rng.random(part.stop - start) * chances[-1], side="right")
            left = self.starts[code] + rng.integers(0, self.sizes[code])
            right = rng.integers(0, strangers[code])  # the others, with the class of `left` cut out
            right += np.where(right < self.starts[code], 0, self.sizes[code])
            cosines[part] = np.einsum("ij,ij->i", self.unit[left], self.unit[right])
        return cosines


@dataclass(frozen=True)
class PairTile:
    """Rows ``first, first + 1, ...`` against columns ``column, column + 1, ...``.

    Attributes:
        first: the first row.
        column: the first column.
        cosines: (rows, columns).
        mixed: whether there are other entries than pairs across classes; `PairSet.kinds` tells which.
    """

    first: int
    column: int
    cosines: Floats
    mixed: bool


@dataclass(frozen=True)
class PairBlock:
    """Rows ``first, first + 1, ...`` against columns ``first, ..., N - 1``.

    Attributes:
        first: row and column of the upper left entry.
        cosines: (rows, N - first).
        positive: bool, entries that are pairs within a class.
        negative: bool, entries that are pairs across classes.
    """

    first: int
    cosines: Floats
    positive: NDArray[np.bool_]
    negative: NDArray[np.bool_]


def pair_set(embeddings: ArrayLike, labels: ArrayLike) -> PairSet:
    """Check the input, scale to length one (float64 stays, all else becomes float32), and sort by class."""
    unit = unit_rows(embeddings)
    classes = class_labels(labels, len(unit))
    order = np.argsort(classes.codes, kind="stable")
    return PairSet(unit=unit[order], codes=classes.codes[order], names=classes.names, sizes=classes.sizes)


def l2_distances(cosines: Floats) -> NDArray[np.float64]:
    """L2 distances of unit vectors with these cosines; accurate to about 1e-8 where vectors coincide."""
    wide = np.asarray(cosines, dtype=np.float64)
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * wide, 0.0)), dtype=np.float64)

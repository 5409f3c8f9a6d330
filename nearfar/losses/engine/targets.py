"""Which pairs are positive, negative, graded or ignored, said tile by tile and never as one dense matrix.

A tile answers in two ways. Masks suit formulas that touch every pair. Pair lists suit closed-form gradients: in most
batches positives are few, so a loss handles every pair as a negative and then corrects the few that are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Pairs = tuple[Tensor, Tensor]  # row and column indices within the tile, sorted by row


_Value = TypeVar("_Value")


class _Lazy(Generic[_Value]):
    """``functools.cached_property`` without the lock it holds before Python 3.12: ``torch.compile`` cannot enter it."""

    def __init__(self, function: Callable[[Any], _Value]) -> None:
        self.function = function

    def __get__(self, owner: Any, _: type | None = None) -> _Value:
        value = self.function(owner)
        owner.__dict__[self.function.__name__] = value  # shadows this descriptor from now on
        return value


class TargetTile:
    """The target of one block of pairs.

    Args:
        positive: boolean (rows, columns).
        negative: boolean (rows, columns); a pair that is neither is ignored.
        relevance: grades in [0, 1], (rows, columns), or None when they are 1 for positives and 0 for the rest.
    """

    def __init__(self, positive: Tensor, negative: Tensor, relevance: Tensor | None = None) -> None:
        self.positive = positive
        self.negative = negative
        self._relevance = relevance

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the tile."""
        rows, columns = self.positive.shape
        return rows, columns

    def relevance(self, dtype: torch.dtype) -> Tensor:
        """Grades (rows, columns): 1 for a positive without a grade of its own, 0 for a negative."""
        return self.positive.to(dtype) if self._relevance is None else self._relevance.to(dtype)

    def positive_pairs(self) -> Pairs:
        """Indices of the positives."""
        return _indices(self.positive)

    def positive_weights(self, pairs: Pairs, dtype: torch.dtype) -> Tensor:
        """Grades of ``positive_pairs()``, (P,)."""
        rows, columns = pairs
        if self._relevance is None:
            return torch.ones(len(rows), dtype=dtype, device=rows.device)
        return self._relevance[rows, columns].to(dtype)

    def non_negative_pairs(self) -> Pairs:
        """Indices of all pairs that are not negatives: positives and ignored ones."""
        return _indices(~self.negative)

    def has_positive(self) -> Tensor:
        """Boolean (rows,)."""
        return self.positive.any(1)

    def has_negative(self) -> Tensor:
        """Boolean (rows,)."""
        return self.negative.any(1)


def _indices(mask: Tensor) -> Pairs:
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns


class Target(Protocol):
    """What a comparison aims at."""

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        ...


class LabelTarget:
    """Same label: positive; other label: negative.

    Args:
        row_labels: integers (R,).
        column_labels: integers (C,).
        self_column: the column in which row 0 meets itself (row i in ``self_column + i``), or None when rows and
            columns are different samples. A sample's pair with itself is neither positive nor negative.
    """

    def __init__(self, row_labels: Tensor, column_labels: Tensor, self_column: int | None = None) -> None:
        self.row_labels = row_labels
        self.column_labels = column_labels
        self.self_column = self_column

    @_Lazy
    def _columns_by_label(self) -> tuple[Tensor, Tensor, Tensor]:
        # Sorted by label, the columns of a class are one run: a row's positives are found without a matrix.
        sorted_labels, order = torch.sort(self.column_labels, stable=True)
        start = torch.searchsorted(sorted_labels, self.row_labels)  # (R,)
        end = torch.searchsorted(sorted_labels, self.row_labels, right=True)  # (R,)
        return order, start, end

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        return _LabelTile(self, rows, columns)


class _LabelTile(TargetTile):
    """Masks and pair lists of labels, each made only when it is asked for."""

    def __init__(self, target: LabelTarget, rows: slice, columns: slice) -> None:
        self._target = target
        self._row_start, row_stop, _ = rows.indices(len(target.row_labels))
        self._column_start, self._column_stop, _ = columns.indices(len(target.column_labels))
        self._rows = slice(self._row_start, row_stop)
        self._relevance = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows.stop - self._rows.start, self._column_stop - self._column_start

    @_Lazy
    def _same(self) -> Tensor:
        columns = self._target.column_labels[self._column_start : self._column_stop]
        return self._target.row_labels[self._rows, None] == columns  # (rows, columns)

    @property
    def negative(self) -> Tensor:  # type: ignore[override]
        return ~self._same

    @_Lazy
    def positive(self) -> Tensor:
        if self._target.self_column is None:
            return self._same
        shift = self._row_start + self._target.self_column - self._column_start
        rows, columns = self.shape
        row = torch.arange(rows, device=self._same.device)[:, None]
        column = torch.arange(columns, device=self._same.device)
        return self._same & (column - row != shift)  # (rows, columns)

    def non_negative_pairs(self) -> Pairs:
        order, start, end = self._target._columns_by_label
        first, counts = start[self._rows], end[self._rows] - start[self._rows]
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # (P,)
        run_start = counts.cumsum(0) - counts
        within_run = torch.arange(len(rows), device=rows.device) - run_start[rows]
        columns = order[first[rows] + within_run]  # (P,)
        if self.shape[1] == len(self._target.column_labels):
            return rows, columns
        inside = (columns >= self._column_start) & (columns < self._column_stop)
        return rows[inside], columns[inside] - self._column_start

    def positive_pairs(self) -> Pairs:
        rows, columns = self.non_negative_pairs()
        if self._target.self_column is None:
            return rows, columns
        shift = self._row_start + self._target.self_column - self._column_start
        other = columns - rows != shift
        return rows[other], columns[other]

    def has_positive(self) -> Tensor:
        if self.shape[1] != len(self._target.column_labels):
            return super().has_positive()
        _, start, end = self._target._columns_by_label
        matches = end[self._rows] - start[self._rows]
        return matches > (0 if self._target.self_column is None else 1)

    def has_negative(self) -> Tensor:
        if self.shape[1] != len(self._target.column_labels):
            return super().has_negative()
        _, start, end = self._target._columns_by_label
        return end[self._rows] - start[self._rows] < self.shape[1]


class MultiHotTarget:
    """Several labels each: a pair that shares at least one is positive, all others are negative.

    Args:
        row_labels: multi-hot (R, L), non-zero where a label applies.
        column_labels: multi-hot (C, L).
        self_column: as in ``LabelTarget``.
    """

    def __init__(self, row_labels: Tensor, column_labels: Tensor, self_column: int | None = None) -> None:
        self.row_labels = (row_labels != 0).float()
        self.column_labels = (column_labels != 0).float()
        self.self_column = self_column

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        shared = self.row_labels[rows] @ self.column_labels[columns].T > 0  # (rows, columns)
        negative = ~shared
        if self.self_column is not None:
            own = _own_pairs(rows, columns, shared, self.self_column)
            shared, negative = shared & ~own, negative & ~own
        return TargetTile(shared, negative)


def _own_pairs(rows: slice, columns: slice, like: Tensor, self_column: int) -> Tensor:
    shift = (rows.start or 0) + self_column - (columns.start or 0)
    height, width = like.shape
    row = torch.arange(height, device=like.device)[:, None]
    return torch.arange(width, device=like.device) - row == shift  # (rows, columns)


class _PairList:
    """A sparse boolean or graded matrix as pairs sorted by row, cut into tiles."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor | None, row_count: int) -> None:
        order = torch.argsort(rows, stable=True)
        sorted_rows = rows[order]
        self._rows, self._columns = sorted_rows, columns[order]
        self._values = None if values is None else values[order]
        edges = torch.arange(row_count + 1, device=rows.device)
        self._start = torch.searchsorted(sorted_rows, edges).tolist()
        self._row_count = row_count

    def dense(self, rows: slice, columns: slice, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        first, stop, _ = rows.indices(self._row_count)
        part = slice(self._start[first], self._start[stop])
        column_start = columns.start or 0
        row, column = self._rows[part] - first, self._columns[part] - column_start
        inside = (column >= 0) & (column < shape[1])
        block = torch.zeros(shape, dtype=dtype, device=self._rows.device)
        value = torch.ones((), dtype=dtype, device=block.device)
        if self._values is not None:
            value = self._values[part][inside].to(dtype)
        return block.index_put_((row[inside], column[inside]), value)


class PairTarget:
    """Mined pairs: exactly the named ones count, each once however often it was mined.

    Args:
        positives: row and column indices of the positive pairs.
        negatives: row and column indices of the negative pairs.
        shape: rows and columns of the comparison.
    """

    def __init__(self, positives: Pairs, negatives: Pairs, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._positive = _PairList(*positives, None, shape[0])
        self._negative = _PairList(*negatives, None, shape[0])

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        shape = _tile_shape(rows, columns, self.shape)
        return TargetTile(
            self._positive.dense(rows, columns, shape, torch.bool),
            self._negative.dense(rows, columns, shape, torch.bool),
        )


class RelevanceTarget:
    """Graded relevance: above 0 is positive, 0 is negative.

    Args:
        relevance: dense (R, C), or sparse COO or CSR where a missing entry is 0; None gives row i the column i.
        shape: rows and columns of the comparison.
        device: where the comparison runs.
        ignored: pairs that count neither way: dense boolean (R, C), or sparse with non-zero entries.
        same_ids: pairs of integer ids for rows (R,) and columns (C,). A pair of equal ids that is not positive is a
            repetition inside the batch, and ignored.
        first_column: the column where ``relevance`` and ``ignored`` begin; columns outside them have relevance 0.
    """

    def __init__(
        self,
        relevance: Tensor | None,
        shape: tuple[int, int],
        device: torch.device,
        ignored: Tensor | None = None,
        same_ids: tuple[tuple[Tensor, Tensor], ...] = (),
        first_column: int = 0,
    ) -> None:
        self.shape = shape
        self._same_ids = same_ids
        self._grades = _Grades(relevance, shape, device, first_column)
        self._ignored = None if ignored is None else _Grades(ignored, shape, device, first_column)

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        shape = _tile_shape(rows, columns, self.shape)
        relevance = self._grades.tile(rows, columns, shape)
        positive = relevance > 0
        ignored = torch.zeros_like(positive)
        if self._ignored is not None:
            ignored = self._ignored.tile(rows, columns, shape) != 0
        for row_ids, column_ids in self._same_ids:
            ignored |= (row_ids[rows, None] == column_ids[columns]) & ~positive  # (rows, columns)
        graded = None if self._grades.is_diagonal else relevance
        return TargetTile(positive & ~ignored, ~positive & ~ignored, graded)


class _Grades:
    """Grades given as a dense matrix, a sparse one, or row i to column i."""

    def __init__(self, grades: Tensor | None, shape: tuple[int, int], device: torch.device, first_column: int) -> None:
        self.is_diagonal = grades is None
        self._device, self._first_column = device, first_column
        self._dense: Tensor | None = None
        if grades is None:
            return
        if grades.layout == torch.strided:
            self._dense = grades
            return
        coo = grades.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        rows, columns = coo.indices()
        values = coo.values()
        self._dtype = values.dtype if values.is_floating_point() else torch.float32
        self._pairs = _PairList(rows, columns + first_column, values, shape[0])

    def tile(self, rows: slice, columns: slice, shape: tuple[int, int]) -> Tensor:
        if self._dense is not None:
            return self._place(self._dense[rows], columns.start or 0, shape[1])
        if not self.is_diagonal:
            return self._pairs.dense(rows, columns, shape, self._dtype)
        shift = (rows.start or 0) + self._first_column - (columns.start or 0)
        row = torch.arange(shape[0], device=self._device)[:, None]
        return torch.arange(shape[1], device=self._device) - row == shift  # (rows, columns)

    def _place(self, grades: Tensor, start: int, width: int) -> Tensor:
        """The columns from ``start`` of a matrix that holds ``grades`` and is 0 elsewhere, (rows, width)."""
        first, last = (min(max(at - self._first_column, 0), grades.shape[1]) for at in (start, start + width))
        part = grades[:, first:last]
        if last - first == width:
            return part
        before = min(max(self._first_column - start, 0), width)
        return F.pad(part, (before, width - before - (last - first)))


class FunctionTarget:
    """Positives and negatives computed by a function of the tile.

    Args:
        function: ``function(rows, columns) -> (positive, negative)``, two boolean tensors of the block's shape.
    """

    def __init__(self, function: Callable[[slice, slice], tuple[Tensor, Tensor]]) -> None:
        self.function = function

    def tile(self, rows: slice, columns: slice) -> TargetTile:
        """The target of a block of pairs."""
        return TargetTile(*self.function(rows, columns))


def _tile_shape(rows: slice, columns: slice, shape: tuple[int, int]) -> tuple[int, int]:
    return len(range(*rows.indices(shape[0]))), len(range(*columns.indices(shape[1])))

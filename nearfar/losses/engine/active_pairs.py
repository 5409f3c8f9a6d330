"""Losses in which few pairs count: find those in one pass over the tiles, and work on them alone.

The search costs one matrix product; everything after it costs as many dot products as there are pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nearfar.losses.engine.comparison import Comparison, Tile
from nearfar.losses.engine.precision import full_precision, refuse_second_derivative
from nearfar.losses.engine.targets import Pairs

_MOST_PAIRS = 2**20  # their indices take 16 MiB
_CHUNK = 2**15  # pairs whose vectors are gathered at once: 16 MiB at 128 dimensions

# Picks the pairs of a tile that count, as so many groups. It may overwrite ``tile.similarity``.
Selection = Callable[[Tile], tuple[Pairs, ...]]


def find_pairs(comparison: Comparison, select: Selection) -> tuple[Pairs, ...] | None:
    """The pairs that ``select`` picks, as rows and columns of the comparison; None when they are too many to list."""
    found: list[list[Pairs]] = []
    total = 0
    with torch.no_grad(), full_precision(comparison.rows.device):
        operands = comparison.in_full_precision()
        walk = operands.similarity.walk(operands.rows, operands.columns, False, False)
        for rows in operands.row_blocks():
            everything = slice(0, len(operands.columns))
            target = operands.target.tile(rows, everything)
            groups = select(Tile(walk.tile(rows, everything), target, {}, {}, {}))
            found.append([(row + rows.start, column) for row, column in groups])
            total += sum(len(row) for row, _ in groups)
            if total > _MOST_PAIRS:
                return None
    return tuple(
        (torch.cat([row for row, _ in group]), torch.cat([column for _, column in group]))
        for group in zip(*found, strict=True)
    )


def dot_products(rows: Tensor, columns: Tensor, pairs: Pairs) -> Tensor:
    """Dot product of each pair, (P,), under autograd and without gathering all vectors at once."""
    found: Tensor = _DotProducts.apply(rows, columns, *pairs)  # type: ignore[no-untyped-call]
    return found


class _DotProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, row: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, row, column)
        found = rows.new_empty(len(row))
        for part in _chunks(len(row)):
            torch.linalg.vecdot(rows[row[part]], columns[column[part]], out=found[part])
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_second_derivative()
        rows, columns, row, column = ctx.saved_tensors
        to_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        to_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(row)):
            weight = gradient[part, None]  # (chunk, 1)
            if to_rows is not None:
                to_rows.index_add_(0, row[part], columns[column[part]] * weight)
            if to_columns is not None:
                to_columns.index_add_(0, column[part], rows[row[part]] * weight)
        return to_rows, to_columns, None, None


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK)]

"""Form 1, row-local: a loss per row from that row of similarities.

Blocks of rows span all columns, so a row is complete when it is seen, and its gradient is formed at once: three
matrix products in all. Row i's share of the loss does not depend on other rows, only the divisor does, and that is
applied outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from nearfar.losses.engine.comparison import Comparison, Space, Tile
from nearfar.losses.engine.distributed import sum_over_processes
from nearfar.losses.engine.precision import full_precision, refuse_second_derivative
from nearfar.losses.engine.statistics import Sum, statistics

Path = Literal["streamed", "dense"]
# Values per row (rows,), and which rows count in the mean, boolean (rows,), or how many terms of it, integer (rows,).
RowValues = tuple[Tensor, Tensor]
# The same with the gradient of each row's value on its similarities (rows, columns), and, for a loss that has them in
# closed form, the gradients of the tile's sum on its row data, column data or parameters by name.
RowGradient = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]
RowFunction = Callable[[Tile], RowValues]
RowGradientFunction = Callable[[Tile], RowGradient]


def row_local(
    comparison: Comparison,
    rows: RowFunction,
    rows_with_gradient: RowGradientFunction | None = None,
    path: Path = "streamed",
    closed_form_names: Collection[str] = (),
) -> tuple[Tensor, Tensor]:
    """Sum of the values of the rows that count, and the number of rows (or of terms) that count.

    Args:
        comparison: what is compared.
        rows: the loss of a tile of complete rows. A row that does not count may have any finite value.
        rows_with_gradient: the same with its gradient on the similarities in closed form, zero in rows that do not
            count. Used when nothing needs a gradient but rows, columns and what ``closed_form_names`` names.
        path: "streamed" never holds the matrix; "dense" does, and can be differentiated twice.
        closed_form_names: row data, column data and parameters whose gradients ``rows_with_gradient`` returns too.

    Returns:
        The sum, connected to the graph, and the count (the sum of what ``rows`` counts), both scalars; over all
        processes when they share the batch.
    """
    total, count = _own_rows(comparison, rows, rows_with_gradient, path, closed_form_names)
    if comparison.shard is None:
        return total, count
    return sum_over_processes(total), sum_over_processes(count)


def _own_rows(
    comparison: Comparison,
    rows: RowFunction,
    rows_with_gradient: RowGradientFunction | None,
    path: Path,
    closed_form_names: Collection[str],
) -> tuple[Tensor, Tensor]:
    with full_precision(comparison.rows.device):
        comparison = comparison.in_full_precision()
        if path == "dense" and not comparison.is_empty:
            values, counted = rows(comparison.dense_tile())
            return values.masked_fill(counted == 0, 0.0).sum(), counted.sum()
        tensors = comparison.tensors()
        wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
        named = zip(comparison.names(), wanted[2:], strict=True)
        covered = all(name in closed_form_names for name, want in named if want)
        closed_form = rows_with_gradient if any(wanted) and covered else None
        total, count = _OnePass.apply(comparison, rows, closed_form, wanted, *tensors)  # type: ignore[no-untyped-call]
        return total, count


def row_values(comparison: Comparison, rows: RowFunction, path: Path = "streamed") -> RowValues:
    """Value of every own row (R,), 0 where it does not count, and which rows count, boolean (R,)."""
    with full_precision(comparison.rows.device):
        comparison = comparison.in_full_precision()
        if path == "dense" and not comparison.is_empty:
            values, counted = rows(comparison.dense_tile())
            return values.masked_fill(counted == 0, 0.0), counted > 0

        def tile(block: Tile) -> dict[str, Tensor]:
            values, counted = rows(block)
            return {"values": values.masked_fill(counted == 0, 0.0), "counted": counted.to(values.dtype)}

        kinds = {"values": Sum("rows"), "counted": Sum("rows", differentiable=False)}
        found = statistics(replace(comparison, shard=None), kinds, tile, whole_rows=True)
        return found["values"], found["counted"] > 0


class _OnePass(torch.autograd.Function):
    """Walks the row blocks once and forms the gradients of the sum as it goes."""

    @staticmethod
    def forward(
        ctx: Any,
        comparison: Comparison,
        rows: RowFunction,
        closed_form: RowGradientFunction | None,
        wanted: list[bool],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sweep = _Sweep(comparison.with_tensors([tensor.detach() for tensor in tensors]), wanted)
        for block in comparison.row_blocks():
            if closed_form is not None:
                sweep.add_closed_form(block, closed_form)
            else:
                sweep.add(block, rows)
        gradients = sweep.gradients()
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        total = sweep.total.to(comparison.rows.dtype)
        ctx.mark_non_differentiable(sweep.count)
        return total, sweep.count

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        saved = iter(ctx.saved_tensors)
        gradients = [next(saved) * grad_total if present else None for present in ctx.present]
        return (None, None, None, None, *gradients)


class _Sweep:
    """State of one pass: the running sum, the count, and the gradients so far."""

    def __init__(self, comparison: Comparison, wanted: list[bool]) -> None:
        self.comparison = comparison
        self.wanted = wanted
        self.space = Space()
        rows = comparison.rows
        self.walk = comparison.similarity.walk(rows, comparison.columns, wanted[0], wanted[1])
        self.total = torch.zeros((), dtype=torch.float64, device=rows.device)
        self.count = torch.zeros((), dtype=torch.int64, device=rows.device)
        self.extra = [
            torch.zeros_like(tensor) if want else None
            for tensor, want in zip(comparison.tensors()[2:], wanted[2:], strict=True)
        ]

    def add_closed_form(self, block: slice, function: RowGradientFunction) -> None:
        similarity = self.walk.tile(block, slice(None))
        values, counted, gradient, *others = function(self._tile(block, similarity, self.comparison))
        self._count(values.masked_fill(counted == 0, 0.0).sum(), counted)
        found: Mapping[str, Tensor] = others[0] if others else {}
        row_data = self.comparison.row_data
        for name, total in zip(self.comparison.names(), self.extra, strict=True):
            if total is not None:
                (total[block] if name in row_data else total).add_(found[name])
        self.walk.pull(block, slice(None), similarity, gradient)

    def add(self, block: slice, function: RowFunction) -> None:
        similarity = self.walk.tile(block, slice(None))
        if not any(self.wanted):
            values, counted = function(self._tile(block, similarity, self.comparison))
            self._count(values.masked_fill(counted == 0, 0.0).sum(), counted)
            return
        leaves = [
            tensor.detach().requires_grad_(want)
            for tensor, want in zip(self.comparison.tensors(), self.wanted, strict=True)
        ]
        similarity.requires_grad_(self.wanted[0] or self.wanted[1])
        with torch.enable_grad():
            values, counted = function(self._tile(block, similarity, self.comparison.with_tensors(leaves)))
            total = values.masked_fill(counted == 0, 0.0).sum()
        self._count(total.detach(), counted)
        if total.requires_grad:
            self._pull(block, similarity, leaves[2:], total)

    def _pull(self, block: slice, similarity: Tensor, leaves: list[Tensor], total: Tensor) -> None:
        inputs = [tensor for tensor in (similarity, *leaves) if tensor.requires_grad]
        found = iter(torch.autograd.grad(total, inputs, allow_unused=True))
        if similarity.requires_grad:
            gradient = next(found)
            if gradient is not None:
                self.walk.pull(block, slice(None), similarity.detach(), gradient)
        for sum_so_far in self.extra:
            if sum_so_far is not None and (gradient := next(found)) is not None:
                sum_so_far += gradient

    def _tile(self, block: slice, similarity: Tensor, operands: Comparison) -> Tile:
        return Tile(
            similarity=similarity,
            target=self.comparison.target.tile(block, slice(None)),
            row={name: value[block] for name, value in operands.row_data.items()},
            column=operands.column_data,
            parameters=operands.parameters,
            space=self.space,
        )

    def _count(self, total: Tensor, counted: Tensor) -> None:
        self.total += total
        self.count += counted.sum()

    def gradients(self) -> list[Tensor | None]:
        self.walk.finish()
        return [self.walk.grad_rows, self.walk.grad_columns, *self.extra]

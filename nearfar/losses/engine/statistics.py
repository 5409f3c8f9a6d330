"""Form 2, statistics: merge small tensors over the tiles, then compute the loss from them under ordinary autograd.

The first pass keeps nothing but the merged statistics. When their gradient comes back, a second pass recomputes each
tile and applies it: a partial sum takes the gradient of the sum, a partial log-sum-exp its share of the whole, a
partial maximum all or nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nearfar.losses.engine.comparison import Comparison, Space, Tile
from nearfar.losses.engine.distributed import Shard, max_over_processes, sum_over_processes
from nearfar.losses.engine.precision import full_precision, refuse_second_derivative

Axis = Literal["rows", "columns", "all"]
Path = Literal["streamed", "dense"]
TileFunction = Callable[[Tile], Mapping[str, Tensor]]
# Gradient on a tile's similarities (rows, columns) from the merged statistics and their gradients, each as the part
# that belongs to the tile.
TileGradientFunction = Callable[[Tile, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class Statistic(ABC):
    """A reduction over tiles that merges associatively.

    Args:
        axis: "rows" keeps a value per row (R,), "columns" one per column (C,), "all" a scalar.
        differentiable: False for counts and other constants.
    """

    def __init__(self, axis: Axis, differentiable: bool = True) -> None:
        self.axis = axis
        self.differentiable = differentiable

    def begin(self, comparison: Comparison) -> Tensor:
        """The statistic of no tile at all. Sums run in float64, since a count of pairs outgrows float32."""
        rows, columns = comparison.shape
        size = {"rows": (rows,), "columns": (columns,), "all": ()}[self.axis]
        return torch.full(size, self.neutral, dtype=torch.float64, device=comparison.rows.device)

    def part(self, whole: Tensor, rows: slice, columns: slice) -> Tensor:
        """The view of ``whole`` that belongs to a tile."""
        return {"rows": lambda: whole[rows], "columns": lambda: whole[columns], "all": lambda: whole}[self.axis]()

    @property
    @abstractmethod
    def neutral(self) -> float:
        """What merges without effect."""

    @abstractmethod
    def merge(self, whole: Tensor, partial: Tensor) -> Tensor:
        """Both as one."""

    @abstractmethod
    def share(self, gradient: Tensor, whole: Tensor, partial: Tensor) -> Tensor:
        """The gradient on a partial, from that on the whole."""

    # Over processes: first the maximum of all their statistics, then the sum of what each makes of its own.

    @abstractmethod
    def summand(self, part: Tensor, peak: Tensor) -> Tensor:
        """What to sum over the processes, from a process's statistic and the largest of all."""

    @abstractmethod
    def from_sum(self, total: Tensor, peak: Tensor) -> Tensor:
        """The statistic of all processes, from that sum."""


class Sum(Statistic):
    """Sum over the tiles."""

    neutral = 0.0

    def merge(self, whole: Tensor, partial: Tensor) -> Tensor:
        """Both as one."""
        return whole + partial

    def share(self, gradient: Tensor, whole: Tensor, partial: Tensor) -> Tensor:
        """The gradient on a partial: that of the sum."""
        return gradient

    def summand(self, part: Tensor, peak: Tensor) -> Tensor:
        """The sum itself."""
        return part

    def from_sum(self, total: Tensor, peak: Tensor) -> Tensor:
        """The sum itself."""
        return total


class LogSumExp(Statistic):
    """Log-sum-exp over the tiles; ``-inf`` where nothing was selected."""

    neutral = -torch.inf

    def merge(self, whole: Tensor, partial: Tensor) -> Tensor:
        """Both as one."""
        return torch.logaddexp(whole, partial.to(whole.dtype))

    def share(self, gradient: Tensor, whole: Tensor, partial: Tensor) -> Tensor:
        """The gradient on a partial: its share of the sum of exponentials."""
        weight = (partial - whole).exp()
        return gradient * weight.masked_fill(partial == -torch.inf, 0.0)

    def summand(self, part: Tensor, peak: Tensor) -> Tensor:
        """The sum of exponentials, relative to the peak."""
        return (part - peak.masked_fill(peak == -torch.inf, 0.0)).exp()

    def from_sum(self, total: Tensor, peak: Tensor) -> Tensor:
        """Back to logarithms."""
        empty = peak == -torch.inf
        return (total.masked_fill(empty, 1.0).log() + peak.masked_fill(empty, 0.0)).masked_fill(empty, -torch.inf)


class Maximum(Statistic):
    """Maximum over the tiles; a tie between tiles shares the gradient in full with each (measure zero)."""

    neutral = -torch.inf

    def merge(self, whole: Tensor, partial: Tensor) -> Tensor:
        """Both as one."""
        return torch.maximum(whole, partial.to(whole.dtype))

    def share(self, gradient: Tensor, whole: Tensor, partial: Tensor) -> Tensor:
        """The gradient on a partial: all of it where it is the maximum."""
        return gradient * (partial == whole)

    def summand(self, part: Tensor, peak: Tensor) -> Tensor:
        """Zero, with the gradient of the maximum where that is here."""
        best = (part == peak) & (peak > -torch.inf)
        return torch.where(best, part - part.detach(), 0.0)

    def from_sum(self, total: Tensor, peak: Tensor) -> Tensor:
        """The maximum."""
        return total + peak


def statistics(
    comparison: Comparison,
    kinds: Mapping[str, Statistic],
    tile: TileFunction,
    path: Path = "streamed",
    whole_rows: bool = False,
    tile_gradient: TileGradientFunction | None = None,
) -> dict[str, Tensor]:
    """The merged statistics, connected to the graph.

    Args:
        comparison: what is compared.
        kinds: the statistics by name.
        tile: the partial statistics of one tile: (rows,) for axis "rows", (columns,) for "columns", scalar for "all".
        path: "streamed" never holds the matrix; "dense" does, and can be differentiated twice.
        whole_rows: let every tile span all columns, for tile functions that need complete rows.
        tile_gradient: the second pass in closed form. Used when nothing but rows and columns needs a gradient.

    When several processes share the batch, the statistics are those of all of them: axis "rows" has a value for each
    row of the whole batch.
    """
    found = _own_statistics(comparison, kinds, tile, path, whole_rows, tile_gradient)
    if comparison.shard is None:
        return found
    dtype = torch.promote_types(comparison.rows.dtype, torch.float32)
    everyones = _over_processes(found, kinds, comparison.shard)
    return {name: everyones[name].to(dtype) for name in kinds}


def _over_processes(own: Mapping[str, Tensor], kinds: Mapping[str, Statistic], shard: Shard) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    of_rows = [name for name, kind in kinds.items() if kind.axis == "rows"]
    others = [name for name, kind in kinds.items() if kind.axis != "rows"]
    if of_rows:
        together = torch.stack([own[name].double() for name in of_rows], 1)  # (R, statistics)
        found.update(zip(of_rows, shard.gather(together).unbind(1), strict=True))
    if others:
        parts = [own[name].double() for name in others]
        sizes = [part.numel() for part in parts]

        def split(together: Tensor) -> list[Tensor]:
            return [piece.view_as(part) for piece, part in zip(torch.split(together, sizes), parts, strict=True)]

        peaks = split(max_over_processes(torch.cat([part.detach().flatten() for part in parts])))
        summands = [kinds[name].summand(*pair) for name, *pair in zip(others, parts, peaks, strict=True)]
        totals = split(sum_over_processes(torch.cat([summand.flatten() for summand in summands])))
        found.update((name, kinds[name].from_sum(*pair)) for name, *pair in zip(others, totals, peaks, strict=True))
    return found


def _own_statistics(
    comparison: Comparison,
    kinds: Mapping[str, Statistic],
    tile: TileFunction,
    path: Path,
    whole_rows: bool,
    tile_gradient: TileGradientFunction | None,
) -> dict[str, Tensor]:
    with full_precision(comparison.rows.device):
        comparison = comparison.in_full_precision()
        dtype = comparison.rows.dtype
        if path == "dense" and not comparison.is_empty:
            return dict(tile(comparison.dense_tile()))
        program = _Program(comparison, kinds, tile, whole_rows, tile_gradient)
        found = _TwoPass.apply(program, *comparison.tensors())  # type: ignore[no-untyped-call]
        return {name: value.to(dtype) for name, value in zip(kinds, found, strict=True)}


class _Program:
    """Everything the two passes share."""

    def __init__(
        self,
        comparison: Comparison,
        kinds: Mapping[str, Statistic],
        tile: TileFunction,
        whole_rows: bool,
        tile_gradient: TileGradientFunction | None,
    ) -> None:
        self.comparison, self.kinds, self.tile, self.whole_rows = comparison, kinds, tile, whole_rows
        self.tile_gradient = tile_gradient
        self.space = Space()

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        if self.whole_rows:
            everything = slice(0, len(self.comparison.columns))
            return ((rows, everything) for rows in self.comparison.row_blocks())
        return self.comparison.tiles()

    def make_tile(self, operands: Comparison, similarity: Tensor, rows: slice, columns: slice) -> Tile:
        return Tile(
            similarity=similarity,
            target=operands.target.tile(rows, columns),
            row={name: value[rows] for name, value in operands.row_data.items()},
            column={name: value[columns] for name, value in operands.column_data.items()},
            parameters=operands.parameters,
            space=self.space,
        )


class _TwoPass(torch.autograd.Function):
    """First pass in forward, second pass in backward."""

    @staticmethod
    def forward(ctx: Any, program: _Program, *tensors: Tensor) -> tuple[Tensor, ...]:
        operands = program.comparison.with_tensors([tensor.detach() for tensor in tensors])
        walk = operands.similarity.walk(operands.rows, operands.columns, False, False)
        merged = {name: kind.begin(operands) for name, kind in program.kinds.items()}
        for rows, columns in program.blocks():
            partials = program.tile(program.make_tile(operands, walk.tile(rows, columns), rows, columns))
            for name, kind in program.kinds.items():
                view = kind.part(merged[name], rows, columns)
                view.copy_(kind.merge(view, partials[name]))
        ctx.program = program
        ctx.save_for_backward(*tensors, *merged.values())
        constants = [merged[name] for name, kind in program.kinds.items() if not kind.differentiable]
        ctx.mark_non_differentiable(*constants)
        return tuple(merged.values())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        program: _Program = ctx.program
        count = len(program.comparison.tensors())
        tensors, merged = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wanted = list(ctx.needs_input_grad[1:])
        second = _SecondPass(program, tensors, wanted, dict(zip(program.kinds, merged, strict=True)))
        with full_precision(tensors[0].device):  # the caller may be inside autocast
            for rows, columns in program.blocks():
                second.add(rows, columns, dict(zip(program.kinds, gradients, strict=True)))
        return (None, *second.gradients())


class _SecondPass:
    """Recomputes tiles and gathers gradients."""

    def __init__(
        self, program: _Program, tensors: tuple[Tensor, ...], wanted: list[bool], merged: dict[str, Tensor]
    ) -> None:
        self.program, self.merged = program, merged
        self.leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        self.operands = program.comparison.with_tensors(self.leaves)
        rows, columns = (leaf.detach() for leaf in self.leaves[:2])
        self.walk = self.operands.similarity.walk(rows, columns, wanted[0], wanted[1])
        self.similarity_wanted = wanted[0] or wanted[1]
        self.extra = [torch.zeros_like(leaf) if leaf.requires_grad else None for leaf in self.leaves[2:]]
        self.closed_form = program.tile_gradient if not any(wanted[2:]) else None

    def add(self, rows: slice, columns: slice, gradients: dict[str, Tensor]) -> None:
        if self.closed_form is not None:
            self._add_closed_form(self.closed_form, rows, columns, gradients)
            return
        similarity = self.walk.tile(rows, columns).requires_grad_(self.similarity_wanted)
        with torch.enable_grad():
            block = self.program.make_tile(self.operands, similarity, rows, columns)
            partials = self.program.tile(block)
        outputs, shares = self._shares(partials, gradients, rows, columns)
        inputs = [leaf for leaf in (similarity, *self.leaves[2:]) if leaf.requires_grad]
        if not outputs or not inputs:
            return
        found = iter(torch.autograd.grad(outputs, inputs, shares, allow_unused=True))
        if self.similarity_wanted and (gradient := next(found)) is not None:
            self.walk.pull(rows, columns, similarity.detach(), gradient)
        for total in self.extra:
            if total is not None and (gradient := next(found)) is not None:
                total += gradient

    def _add_closed_form(
        self, function: TileGradientFunction, rows: slice, columns: slice, gradients: dict[str, Tensor]
    ) -> None:
        similarity = self.walk.tile(rows, columns)
        dtype, kinds = similarity.dtype, self.program.kinds
        merged = {name: kind.part(self.merged[name], rows, columns).to(dtype) for name, kind in kinds.items()}
        cotangents = {name: kind.part(gradients[name], rows, columns).to(dtype) for name, kind in kinds.items()}
        block = self.program.make_tile(self.operands, similarity, rows, columns)
        self.walk.pull(rows, columns, similarity, function(block, merged, cotangents))

    def _shares(
        self, partials: Mapping[str, Tensor], gradients: dict[str, Tensor], rows: slice, columns: slice
    ) -> tuple[list[Tensor], list[Tensor]]:
        outputs, shares = [], []
        for name, kind in self.program.kinds.items():
            partial = partials[name]
            if kind.differentiable and partial.requires_grad:
                gradient = kind.part(gradients[name], rows, columns)
                whole = kind.part(self.merged[name], rows, columns)
                outputs.append(partial)
                shares.append(kind.share(gradient, whole, partial.detach()).to(partial.dtype))
        return outputs, shares

    def gradients(self) -> list[Tensor | None]:
        self.walk.finish()
        return [self.walk.grad_rows, self.walk.grad_columns, *self.extra]

"""What a loss compares: rows with columns, what is positive, and the data and parameters that go with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nearfar.losses.engine.distributed import Shard
from nearfar.losses.engine.similarity import Dot, Similarity
from nearfar.losses.engine.targets import Target, TargetTile

# A tile and its few temporaries should stay in a core's share of the cache. Measured on 4096 x 128: 2 to 8 MiB are
# equal within noise, 32 MiB is slower.
TILE_BYTES = 4 * 2**20
_FEWEST_ROWS = 32  # below this a matrix product is bound by reading the columns
_WIDEST_TILE = 4096  # columns of a tile, where tiles need not span all columns


class Space:
    """Buffers for the matrices of a tile, reused by the next: new memory costs as much time as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(
        self, name: str, like: Tensor, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """Contiguous space where ``like`` is, of its shape and type unless told otherwise, with anything in it."""
        shape = like.shape if shape is None else shape
        count, held = math.prod(shape), self._held.get(name)
        if held is None or held.numel() < count:  # the first block is the largest
            held = self._held[name] = like.new_empty(count, dtype=dtype or like.dtype)
        return held[:count].view(shape)


@dataclass(frozen=True)
class Tile:
    """One block of the similarity matrix, with everything that belongs to its rows and columns.

    Attributes:
        similarity: (rows, columns).
        target: which of its pairs are positive, negative or graded.
        row: data per row, first dimension rows.
        column: data per column, first dimension columns.
        parameters: tensors that belong to every tile, such as a learned scale.
        space: buffers that the next tile takes over.
    """

    similarity: Tensor
    target: TargetTile
    row: Mapping[str, Tensor]
    column: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    space: Space = field(default_factory=lambda: Space())


@dataclass(frozen=True)
class Comparison:
    """Anchors compared with references, before any similarity is computed.

    Attributes:
        rows: anchors (R, D).
        columns: references (C, D).
        target: what is positive.
        similarity: how rows and columns are compared.
        row_data: tensors with first dimension R that the loss needs beside the similarities.
        column_data: the same with first dimension C.
        parameters: tensors that every tile sees whole.
        shard: when the rows are this process's part of a batch that several share, who has the others. Sums, counts
            and statistics are then those of all processes.
    """

    rows: Tensor
    columns: Tensor
    target: Target
    # A function, since torch.compile cannot trace a class as factory.
    similarity: Similarity = field(default_factory=lambda: Dot())
    row_data: Mapping[str, Tensor] = field(default_factory=dict)
    column_data: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    shard: Shard | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the similarity matrix."""
        return len(self.rows), len(self.columns)

    @property
    def is_empty(self) -> bool:
        """Nothing is compared: there are no tiles, so a loss never sees an empty row."""
        return 0 in self.shape

    def in_full_precision(self) -> Comparison:
        """The same with half-precision tensors raised to float32, under autograd: gradients return in their dtype."""
        return replace(
            self,
            rows=_raise_precision(self.rows),
            columns=_raise_precision(self.columns),
            row_data={name: _raise_precision(value) for name, value in self.row_data.items()},
            column_data={name: _raise_precision(value) for name, value in self.column_data.items()},
            parameters={name: _raise_precision(value) for name, value in self.parameters.items()},
        )

    def tensors(self) -> list[Tensor]:
        """All operands in a fixed order, for the autograd function."""
        parts = (self.row_data, self.column_data, self.parameters)
        return [self.rows, self.columns, *(value for part in parts for value in part.values())]

    def names(self) -> list[str]:
        """Names of all operands but rows and columns, in the order of ``tensors()``."""
        return [*self.row_data, *self.column_data, *self.parameters]

    def with_tensors(self, tensors: list[Tensor]) -> Comparison:
        """The same comparison on other operands, given in the order of ``tensors()``."""
        rows, columns, *rest = tensors
        values = iter(rest)
        row_data, column_data, parameters = (
            {name: next(values) for name in part} for part in (self.row_data, self.column_data, self.parameters)
        )
        return replace(
            self,
            rows=rows,
            columns=columns,
            row_data=row_data,
            column_data=column_data,
            parameters=parameters,
        )

    def dense_tile(self) -> Tile:
        """The whole matrix as one tile, under autograd."""
        everything = slice(None)
        return Tile(
            similarity=self.similarity.dense(self.rows, self.columns),  # (R, C)
            target=self.target.tile(everything, everything),
            row=self.row_data,
            column=self.column_data,
            parameters=self.parameters,
        )

    def row_blocks(self) -> Iterator[slice]:
        """Blocks of rows that span all columns."""
        if self.is_empty:
            return iter(())
        bytes_per_row = len(self.columns) * self.rows.element_size()
        return _blocks(len(self.rows), max(_FEWEST_ROWS, TILE_BYTES // bytes_per_row))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Blocks of rows and columns."""
        if self.is_empty:
            return
        width = min(_WIDEST_TILE, len(self.columns))
        height = max(_FEWEST_ROWS, TILE_BYTES // (width * self.rows.element_size()))
        for rows in _blocks(len(self.rows), height):
            for columns in _blocks(len(self.columns), width):
                yield rows, columns


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _raise_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

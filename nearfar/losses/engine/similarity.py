"""Similarities of rows and columns, one tile at a time, and the way back from a tile's gradient.

Cosine is ``Dot`` on embeddings that were normalised under autograd; that copy is as small as the batch. Class
weights are large, so ``Dot(normalise_columns=True)`` divides the tile instead and copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_TINY_NORM = 1e-12  # as torch.nn.functional.normalize


def unit(vectors: Tensor) -> Tensor:
    """Rows of unit length. A zero row stays zero and gets no gradient: it has no direction.

    ``torch.nn.functional.normalize`` sends such a row 1e12 times the gradient, which half precision cannot hold.
    """
    scaled: Tensor = vectors / _divisor(vectors)[:, None]
    return scaled


def _divisor(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1)
    divisor: Tensor = norm.masked_fill(norm < _TINY_NORM, torch.inf)
    return divisor


class Walk(Protocol):
    """One pass over the tiles; gradients of rows and columns gather in it."""

    grad_rows: Tensor | None
    grad_columns: Tensor | None

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Similarities of a block, (rows, columns)."""
        ...

    def pull(self, rows: slice, columns: slice, tile: Tensor, gradient: Tensor) -> None:
        """Add what ``gradient``, of the tile's shape, sends to the rows and columns. May overwrite both."""
        ...

    def finish(self) -> None:
        """Complete the gradients after the last tile."""
        ...


class Similarity(Protocol):
    """A way to compare rows (R, D) with columns (C, D)."""

    def dense(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The whole matrix (R, C), under autograd."""
        ...

    def walk(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> Walk:
        """Begin a pass that gathers the wanted gradients."""
        ...


@dataclass(frozen=True)
class Dot:
    """Dot product; with ``normalise_columns`` each column counts with unit length, without a normalised copy."""

    normalise_columns: bool = False

    def dense(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The whole matrix (R, C), under autograd."""
        return rows @ (unit(columns) if self.normalise_columns else columns).T

    def walk(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> Walk:
        """Begin a pass that gathers the wanted gradients."""
        kind = _NormalisedDotWalk if self.normalise_columns else _DotWalk
        return kind(rows, columns, want_rows, want_columns)


class _DotWalk:
    def __init__(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> None:
        self.rows, self.columns = rows, columns
        self.grad_rows = torch.zeros_like(rows) if want_rows else None
        self.grad_columns = torch.zeros_like(columns) if want_columns else None

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.rows[rows] @ self.columns[columns].T  # (rows, columns)

    def pull(self, rows: slice, columns: slice, tile: Tensor, gradient: Tensor) -> None:
        if self.grad_rows is not None:
            self.grad_rows[rows].addmm_(gradient, self.columns[columns])  # (rows, D)
        if self.grad_columns is not None:
            self.grad_columns[columns].addmm_(gradient.T, self.rows[rows])  # (columns, D)

    def finish(self) -> None:
        """Nothing is left to do."""


class _NormalisedDotWalk(_DotWalk):
    def __init__(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> None:
        super().__init__(rows, columns, want_rows, want_columns)
        self.inverse_norm = _divisor(columns).reciprocal()  # (C,)
        # d(w / |w|) loses the part along w: per column, how much of the gradient points that way.
        self.radial = columns.new_zeros(len(columns)) if want_columns else None

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return super().tile(rows, columns).mul_(self.inverse_norm[columns])  # (rows, columns)

    def pull(self, rows: slice, columns: slice, tile: Tensor, gradient: Tensor) -> None:
        if self.radial is not None:
            self.radial[columns] += torch.einsum("rc,rc->c", gradient, tile)
        super().pull(rows, columns, tile, gradient.mul_(self.inverse_norm[columns]))

    def finish(self) -> None:
        if self.grad_columns is not None and self.radial is not None:
            scale = self.radial * self.inverse_norm.square()  # (C,)
            self.grad_columns.addcmul_(self.columns, scale[:, None], value=-1)


@dataclass(frozen=True)
class Euclidean:
    """Euclidean distance ``sqrt(|x - y|^2 + epsilon)``; here smaller means nearer.

    Differences are taken before squaring. Expanding the square in float32 cancels, and near points get negative
    squared distances.
    """

    epsilon: float = 0.0

    def dense(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The whole matrix (R, C), under autograd."""
        if columns is rows:
            columns = columns.view_as(columns)  # torch.compile refuses one tensor as two arguments
        distance: Tensor = _Distance.apply(rows, columns, self.epsilon)  # type: ignore[no-untyped-call]
        return distance

    def walk(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> Walk:
        """Begin a pass that gathers the wanted gradients."""
        return _EuclideanWalk(self, rows, columns, want_rows, want_columns)


class _Distance(torch.autograd.Function):
    """``torch.cdist`` without expanded squares, which unlike it can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, epsilon: float) -> Tensor:
        plain = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")  # (R, C)
        distance = (plain.square() + epsilon).sqrt() if epsilon else plain
        ctx.save_for_backward(rows, columns, plain, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, columns, plain, distance = ctx.saved_tensors
        share = gradient / distance.masked_fill(distance == 0, torch.inf)  # (R, C)
        want_rows, want_columns, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again; near points lose digits here
            grad_rows = share.sum(1)[:, None] * rows - share @ columns if want_rows else None
            grad_columns = share.sum(0)[:, None] * columns - share.T @ rows if want_columns else None
            return grad_rows, grad_columns, None
        share = share * plain
        pull = torch.ops.aten._cdist_backward
        grad_rows = pull(share, rows, columns, 2.0, plain) if want_rows else None
        turned = share.T.contiguous(), columns, rows, 2.0, plain.T.contiguous()
        return grad_rows, pull(*turned) if want_columns else None, None


class _EuclideanWalk:
    def __init__(self, kind: Euclidean, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> None:
        self.kind, self.rows, self.columns = kind, rows, columns
        self.grad_rows = torch.zeros_like(rows) if want_rows else None
        self.grad_columns = torch.zeros_like(columns) if want_columns else None

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.kind.dense(self.rows[rows], self.columns[columns])  # (rows, columns)

    def pull(self, rows: slice, columns: slice, tile: Tensor, gradient: Tensor) -> None:
        sides = [(self.grad_rows, self.rows, rows), (self.grad_columns, self.columns, columns)]
        leaves = [points[part].detach().requires_grad_(total is not None) for total, points, part in sides]
        with torch.enable_grad():
            distance = self.kind.dense(*leaves)
        wanted = [
            (total[part], leaf) for (total, _, part), leaf in zip(sides, leaves, strict=True) if total is not None
        ]
        found = torch.autograd.grad(distance, [leaf for _, leaf in wanted], gradient)
        for (total, _), part_gradient in zip(wanted, found, strict=True):
            total += part_gradient

    def finish(self) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class UnitEuclidean:
    """Euclidean distance of unit vectors, ``sqrt(2 - 2 cos)``; here smaller means nearer.

    As fast as a dot product. What is not above the rounding of the cosine (1e-3 in float32) is 0, without gradient: a
    point and its copy are at distance 0. A zero vector counts as orthogonal to all.
    """

    def dense(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The whole matrix (R, C), under autograd."""
        return unit_distance(rows @ columns.T)

    def walk(self, rows: Tensor, columns: Tensor, want_rows: bool, want_columns: bool) -> Walk:
        """Begin a pass that gathers the wanted gradients."""
        return _UnitEuclideanWalk(rows, columns, want_rows, want_columns)


class _UnitEuclideanWalk(_DotWalk):
    def tile(self, rows: slice, columns: slice) -> Tensor:
        square = super().tile(rows, columns).mul_(-2).add_(2)  # (rows, columns)
        return torch.threshold_(square, _square_floor(square), 0.0).sqrt_()

    def pull(self, rows: slice, columns: slice, tile: Tensor, gradient: Tensor) -> None:
        # The slope of the distance on the cosine is -1 / distance. Nobody needs the tile after this.
        super().pull(rows, columns, tile, gradient.div_(torch.threshold_(tile, 0.0, torch.inf)).neg_())


def unit_distance(cosine: Tensor) -> Tensor:
    """Distance of unit vectors from their cosine, any shape; 0 without gradient where it is not above rounding."""
    square = 2 - 2 * cosine
    same = square <= _square_floor(square)
    return square.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)


def _square_floor(square: Tensor) -> float:
    return 8 * torch.finfo(square.dtype).eps

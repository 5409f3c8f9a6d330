"""What the in-batch miners share: pytorch-metric-learning's call, checked, and a walk over complete rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.engine import Comparison, Tile
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.label_batch import LabelBatch, check_label_batch

Indices = tuple[Tensor, ...]


class InBatchMiner(nn.Module):
    """A miner as pytorch-metric-learning calls it: ``miner(embeddings, labels, ref_emb, ref_labels) -> indices``.

    The indices go into any loss as ``indices_tuple``. Similarities are formed a block of rows at a time, so only the
    indices themselves grow with the square of the batch. Half precision is raised to float32.
    """

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Indices:
        """Mine a batch.

        Args:
            embeddings: (B, D), any scale.
            labels: integers (B,), or multi-hot (B, L), where sharing one label makes a pair positive.
            ref_emb: references (N, D) to take positives and negatives from; the batch itself when None.
            ref_labels: their labels. A sample's pair with itself is left out only when ``ref_emb`` is None or the very
                object ``embeddings``.

        Returns:
            int64 tensors on the device of the embeddings: (anchors, positives, anchors, negatives) or (anchors,
            positives, negatives). Anchors count rows of ``embeddings``, the others rows of ``ref_emb``.

        Raises:
            InputError: for shapes that do not fit, float labels, or embeddings that are not finite.
        """
        batch = check_label_batch(embeddings, labels, None, ref_emb, ref_labels)
        _check_finite("embeddings", embeddings)
        if not batch.is_self:
            _check_finite("ref_emb", batch.ref_emb)
        return self.mine(batch)

    def mine(self, batch: LabelBatch) -> Indices:
        """Mine a checked batch."""
        with torch.no_grad(), full_precision(batch.embeddings.device):
            return self.find(batch)

    def find(self, batch: LabelBatch) -> Indices:
        """What a subclass does, without gradient and outside autocast."""
        raise NotImplementedError


def cosine_rows(comparison: Comparison) -> Iterator[tuple[int, Tile]]:
    """Blocks of rows of cosines that span all columns, each with its first row.

    All are made in one place: a tile may be overwritten, and is by the next. Fresh memory for each costs as much as
    half the product.
    """
    everything = slice(0, len(comparison.columns))
    space: Tensor | None = None
    for rows in comparison.row_blocks():
        points = comparison.rows[rows]
        if space is None:
            space = points.new_empty(len(points), len(comparison.columns))
        cosine = torch.mm(points, comparison.columns.T, out=space[: len(points)])  # (rows, columns)
        yield rows.start, Tile(cosine, comparison.target.tile(rows, everything), {}, {}, {})


def distance_rows(comparison: Comparison) -> Iterator[tuple[int, Tile]]:
    """The same of Euclidean distances of unit vectors, 0 where rounding decides, as ``UnitEuclidean`` gives them."""
    for first, tile in cosine_rows(replace(comparison, rows=-2 * comparison.rows)):
        square = tile.similarity.add_(2)
        torch.threshold_(square, 8 * torch.finfo(square.dtype).eps, 0.0).sqrt_()
        yield first, tile


class IndexList:
    """Index tensors that grow block by block."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._blocks = [[torch.empty(0, dtype=torch.int64, device=device)] for _ in range(width)]

    def add(self, *indices: Tensor) -> None:
        """Append a tensor to each list."""
        for blocks, part in zip(self._blocks, indices, strict=True):
            blocks.append(part)

    def joined(self) -> Indices:
        """One tensor per list; the blocks are let go one list at a time."""
        found = []
        while self._blocks:
            found.append(torch.cat(self._blocks.pop(0)))
        return tuple(found)


def row_extreme(values: Tensor, rows: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Smallest value of each row of a pair list, and its column: the lowest where several are equal.

    Args:
        values: (P,).
        rows: the row of each value, (P,).
        columns: its column, (P,).
        count: number of rows R.

    Returns:
        Values (R,), infinite for a row without pairs, and columns (R,), meaningless there.
    """
    smallest = values.new_full((count,), torch.inf).scatter_reduce_(0, rows, values, "amin")
    first = columns.new_full((count,), torch.iinfo(torch.int64).max)
    ties = values == smallest[rows]
    return smallest, first.scatter_reduce_(0, rows[ties], columns[ties], "amin")


def marked(mask: Tensor) -> Pairs:
    """``mask.nonzero(as_tuple=True)`` of a matrix, for the many pairs that miners find.

    On a processor NumPy looks through a mask several times as fast as torch, which writes both indices of each pair.
    """
    if mask.device.type != "cpu":
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    place = torch.from_numpy(np.flatnonzero(mask.numpy()))  # (P,), in the flattened matrix
    height, width = mask.shape
    edges = torch.searchsorted(place, torch.arange(0, (height + 1) * width, width))  # (R + 1,)
    rows = torch.repeat_interleave(edges.diff())  # (P,)
    return rows, place.sub_(rows, alpha=width)


_BLOCK = 64


def row_minimum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix.min(1)``: smallest values and their first columns, (R,) each.

    Torch vectorises the search for a value, not that for its place: so the value of each short block first, and the
    place in the best block alone.
    """
    width = matrix.shape[1] // _BLOCK * _BLOCK
    if width == 0 or matrix.numel() == 0:
        values, columns = matrix.min(1)
        return values, columns
    blocks = matrix[:, :width].reshape(len(matrix), -1, _BLOCK)  # (R, blocks, _BLOCK)
    values, block = blocks.amin(2).min(1)
    columns = block * _BLOCK + blocks[torch.arange(len(matrix), device=matrix.device), block].argmin(1)
    if width == matrix.shape[1]:
        return values, columns
    rest, place = matrix[:, width:].min(1)
    return torch.minimum(values, rest), torch.where(rest < values, place + width, columns)


def _check_finite(name: str, embeddings: Tensor) -> None:
    broken = (~torch.isfinite(embeddings)).any(1)  # (B,)
    if bool(broken.any()):
        raise InputError(
            f"{name} holds NaN or infinity in {int(broken.sum())} of {len(broken)} rows, first in row "
            f"{int(broken.int().argmax())}: nothing can be mined from them; look for the step that made them"
        )

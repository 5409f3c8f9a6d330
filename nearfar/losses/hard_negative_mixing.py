"""MoCHi: https://arxiv.org/abs/2010.01028 (Kalantidis et al., NeurIPS 2020).

Synthetic negatives: mixtures of an anchor's hardest negatives with each other, and with the anchor itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.draws import SeededDraws
from nearfar.losses.engine import Comparison, RowGradient, RowValues, TargetTile, Tile
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.row_local import RowFunction, RowGradientFunction
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.mixtures import Mixtures, mixture_similarity

#: Row data: similarities of each anchor to its synthetic negatives, (R, M), and which of these there are, boolean.
SYNTHETIC, _PRESENT = "synthetic", "synthetic_present"
_LARGEST_ANCHOR_PART = 0.5


class HardNegativeMixing(nn.Module):
    r"""Synthetic hard negatives, an option of the call: ``loss(embeddings, labels, synthesis=HardNegativeMixing())``.

    From the ``hardest`` most similar negatives of each anchor q two kinds are made and brought to unit length,

    .. math::
        h = \alpha n_i + (1 - \alpha) n_j, \quad \alpha \sim U(0, 1), \qquad
        h' = \beta q + (1 - \beta) n_i, \quad \beta \sim U(0, 0.5)

    with :math:`n_i \ne n_j` drawn evenly. They join the anchor's own negatives: the loss is exactly that of a batch
    in which this anchor, and no other, also has them as negatives. They stand in the same sum as the others, as in
    the paper, there is no second term and no weight, and a loss that mines its negatives mines among them too.

    An anchor with a single negative has no h, one without any has neither. Which negatives are hardest is a choice
    without gradient. Through the mixtures gradients reach the anchor and both negatives; in the paper the negatives
    lie in a queue and get none. No mixture is ever stored, since its similarity follows from those of its parts: beside
    the batch, memory grows by a few numbers per mixture and per hardest negative. Finding these takes one more matrix
    product.

    Args:
        hardest: negatives to mix; 16 (ours). 1024 in the paper, of a queue of 65,536 (from memory).
        mixtures: h per anchor; 8 (ours). 1024 in the paper (from memory).
        query_mixtures: h' per anchor; 0 (ours). 128 in the paper (from memory).
        seed: of the draws. How many calls were made is part of the state, so a restored one goes on where it stopped.

    Raises:
        InputError: when ``hardest`` is below 1 (2 for ``mixtures``), a number of mixtures is negative, both are 0, or
            the seed is negative.

    Example:
        >>> import torch
        >>> from nearfar.losses import HardNegativeMixing, SupConLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> labels, loss = torch.tensor([0, 0, 1, 1]), SupConLoss()
        >>> bool(loss(x, labels, synthesis=HardNegativeMixing(seed=0)) > loss(x, labels))
        True

    Source: the paper's two kinds and their ranges, from memory. There the first epochs go without; here that is up to
    the caller.
    """

    paper = "https://arxiv.org/abs/2010.01028"
    citation = """@inproceedings{kalantidis2020hard,
    title = {Hard Negative Mixing for Contrastive Learning},
    author = {Kalantidis, Yannis and Sariyildiz, Mert Bulent and Pion, Noe and Weinzaepfel, Philippe and
        Larlus, Diane},
    booktitle = {NeurIPS},
    year = {2020}
}"""

    def __init__(self, hardest: int = 16, mixtures: int = 8, query_mixtures: int = 0, *, seed: int = 0) -> None:
        super().__init__()
        if mixtures < 0 or query_mixtures < 0 or mixtures + query_mixtures == 0:
            raise InputError(
                f"mixtures={mixtures!r} and query_mixtures={query_mixtures!r} must not be negative, nor both 0"
            )
        least = 2 if mixtures else 1
        if hardest < least:
            raise InputError(f"hardest={hardest!r} must be at least {least}: a mixture is made of different vectors")
        self.hardest, self.mixtures, self.query_mixtures, self.seed = hardest, mixtures, query_mixtures, seed
        self.draws = SeededDraws(seed)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {name: getattr(self, name) for name in ("hardest", "mixtures", "query_mixtures", "seed")}

    def extra_repr(self) -> str:
        """The options, as ``print`` shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

    def forward(self, comparison: Comparison, path: Literal["streamed", "dense"] = "streamed") -> Comparison:
        """The same comparison, each anchor with its synthetic negatives.

        Args:
            comparison: anchors and references of unit length, compared by cosine. When several processes share the
                batch, all draw the same numbers and each mixes for its own anchors.
            path: "streamed" gathers few vectors at once; "dense" all of them, and can be differentiated twice.
        """
        between, towards = self._draw(comparison)
        with full_precision(comparison.rows.device):
            comparison = comparison.in_full_precision()
            hardest, count = _hardest_negatives(comparison, self.hardest)
            parts = [
                _mix_negatives(comparison, hardest, count, between, path),  # (R, mixtures)
                _mix_with_anchor(comparison, hardest, count, towards, path),  # (R, query_mixtures)
            ]
        similarity = torch.cat([values for values, _ in parts], 1)  # (R, M)
        present = torch.cat([is_there for _, is_there in parts], 1)
        return replace(comparison, row_data={**comparison.row_data, SYNTHETIC: similarity, _PRESENT: present})

    def _draw(self, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Two spots and a ratio per h, (R, mixtures, 3), a spot and a ratio per h', (R, query_mixtures, 2)."""
        generator, shard, rows = self.draws.generator(), comparison.shard, comparison.rows
        total = len(rows) if shard is None else shard.total
        own = slice(None) if shard is None else shard.own  # each anchor has its numbers, whichever process it is on
        between = generator.random((total, self.mixtures, 3))[own]
        towards = generator.random((total, self.query_mixtures, 2))[own]
        return torch.from_numpy(between).to(rows.device), torch.from_numpy(towards).to(rows.device)


def _hardest_negatives(comparison: Comparison, number: int) -> tuple[Tensor, Tensor]:
    """Columns of each row's most similar negatives, nearest first, (R, number), and how many there are, (R,)."""
    rows, columns = comparison.shape
    found = torch.zeros(rows, number, dtype=torch.int64, device=comparison.rows.device)
    count = torch.zeros(rows, dtype=torch.int64, device=found.device)
    everything, width = slice(0, columns), min(number, columns)
    with torch.no_grad():
        walk = comparison.similarity.walk(comparison.rows, comparison.columns, False, False)
        for block in comparison.row_blocks():
            similarity = walk.tile(block, everything)  # (rows, columns)
            similarity[comparison.target.tile(block, everything).non_negative_pairs()] = -torch.inf
            best, where = similarity.topk(width, dim=1)  # (rows, width)
            found[block, :width] = where
            count[block] = (best > -torch.inf).sum(1)
    return found, count


def _mix_negatives(
    comparison: Comparison, hardest: Tensor, count: Tensor, draws: Tensor, path: Literal["streamed", "dense"]
) -> tuple[Tensor, Tensor]:
    """Cosines of anchors and mixtures of two negatives, (R, mixtures), 0 where there is none; and where one is."""
    able = (count > 1)[:, None].expand(draws.shape[:2])  # (R, mixtures)
    anchor, size = able.nonzero(as_tuple=True)[0], count[:, None].expand(able.shape)[able]  # (P,) each
    first_spot, second_spot, ratio = draws[able].unbind(1)  # (P,) each
    first = (first_spot * size).long()
    second = (first + 1 + (second_spot * (size - 1)).long()) % size  # another one
    mixed = Mixtures(anchor, hardest[anchor, first], hardest[anchor, second])
    similarity = mixture_similarity(comparison, mixed, ratio.to(comparison.rows.dtype), path)  # (P,)
    return similarity.new_zeros(able.shape).masked_scatter(able, similarity), able


def _mix_with_anchor(
    comparison: Comparison, hardest: Tensor, count: Tensor, draws: Tensor, path: Literal["streamed", "dense"]
) -> tuple[Tensor, Tensor]:
    """The same of the anchor and one of its negatives, (R, query_mixtures)."""
    able = (count > 0)[:, None].expand(draws.shape[:2])  # (R, query_mixtures)
    anchor, size = able.nonzero(as_tuple=True)[0], count[:, None].expand(able.shape)[able]  # (P,) each
    spot, share = draws[able].unbind(1)  # (P,) each
    mixed = Mixtures(anchor, None, hardest[anchor, (spot * size).long()])
    ratio = (share * _LARGEST_ANCHOR_PART).to(comparison.rows.dtype)
    similarity = mixture_similarity(comparison, mixed, ratio, path)  # (P,)
    return similarity.new_zeros(able.shape).masked_scatter(able, similarity), able


def widened(rows: RowFunction) -> RowFunction:
    """The loss of rows that also have the synthetic negatives."""

    def function(tile: Tile) -> RowValues:
        return rows(_widen(tile))

    return function


def widened_gradient(rows_with_gradient: RowGradientFunction) -> RowGradientFunction:
    """The same with the gradient, that of the synthetic negatives by name."""

    def function(tile: Tile) -> RowGradient:
        values, counted, gradient, *others = rows_with_gradient(_widen(tile))
        width = tile.similarity.shape[1]
        found = others[0] if others else {}
        return values, counted, gradient[:, :width], {**found, SYNTHETIC: gradient[:, width:]}

    return function


def _widen(tile: Tile) -> Tile:
    similarity = torch.cat([tile.similarity, tile.row[SYNTHETIC]], 1)  # (rows, columns + M)
    return replace(tile, similarity=similarity, target=_WidenedTile(tile.target, tile.row[_PRESENT]))


class _WidenedTile(TargetTile):
    """A target with the synthetic negatives as further columns."""

    def __init__(self, target: TargetTile, present: Tensor) -> None:
        self._target, self._present = target, present
        self._relevance = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._target.shape
        return rows, columns + self._present.shape[1]

    @property
    def positive(self) -> Tensor:  # type: ignore[override]
        return torch.cat([self._target.positive, torch.zeros_like(self._present)], 1)

    @property
    def negative(self) -> Tensor:  # type: ignore[override]
        return torch.cat([self._target.negative, self._present], 1)

    def positive_pairs(self) -> Pairs:
        return self._target.positive_pairs()

    def non_negative_pairs(self) -> Pairs:
        rows, columns = self._target.non_negative_pairs()
        absent_rows, absent = (~self._present).nonzero(as_tuple=True)
        if not len(absent):
            return rows, columns
        rows = torch.cat([rows, absent_rows])  # (P,)
        order = rows.argsort(stable=True)
        return rows[order], torch.cat([columns, absent + self._target.shape[1]])[order]

    def has_positive(self) -> Tensor:
        return self._target.has_positive()

    def has_negative(self) -> Tensor:
        # A synthetic negative is made of others.
        return self._target.has_negative()

"""Distance-weighted sampling: https://arxiv.org/abs/1706.07567 (Wu et al., ICCV 2017).

Negatives at all distances alike, where uniform sampling would draw nearly all of them from far away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.losses.checks import check_positive
from nearfar.losses.draws import SeededDraws
from nearfar.losses.label_batch import LabelBatch
from nearfar.miners.in_batch import InBatchMiner, IndexList, Indices, distance_rows


class DistanceWeightedMiner(InBatchMiner):
    r"""Random triplets whose negatives are drawn by the inverse of how common their distance is.

    On the unit sphere in D dimensions, pairs of random points lie at distance d with density
    :math:`q(d) \propto d^{D-2} (1 - d^2 / 4)^{(D-3)/2}`; a negative is drawn with a weight of 1 / q(d). Each anchor
    gets as many triplets as its class has samples among the references, its positives drawn evenly, all with
    replacement.

    Args:
        cutoff: smaller distances are weighted as this one; 0.5 (paper and pytorch-metric-learning).
        nonzero_loss_cutoff: negatives at this distance or farther are never drawn; 1.4 (the same).
        seed: of the draws. How many batches were drawn is part of ``state_dict()``, so a restored miner goes on where
            it stopped.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> (anchors, positives, negatives), int64, sorted by anchor. Anchors
        without a positive, or without a negative near enough, get no triplet.

    Raises:
        InputError: for a cutoff that is not above 0, a negative seed, and see ``InBatchMiner.forward``.

    Example:
        >>> import torch
        >>> from nearfar.miners import DistanceWeightedMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> a, p, n = DistanceWeightedMiner()(x, torch.tensor([0, 0, 1, 1]))
        >>> a.tolist(), p.tolist()
        ([1, 1, 2, 2], [0, 0, 3, 3])

    Source: pytorch-metric-learning, with two differences. It draws from torch's global generator; and it scales the
    weights of all anchors by one common factor, so that in many dimensions those of an anchor without very near
    negatives vanish and it is left out. Here each anchor has its own factor.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, seed: int = 0) -> None:
        super().__init__()
        self.cutoff = check_positive("cutoff", cutoff)
        self.nonzero_loss_cutoff = check_positive("nonzero_loss_cutoff", nonzero_loss_cutoff)
        self.seed, self.draws = seed, SeededDraws(seed)

    def find(self, batch: LabelBatch) -> Indices:
        """A block of anchors at a time; the draws do not depend on how the rows are cut."""
        dimension = batch.embeddings.shape[1]
        generator = self.draws.generator()
        found = IndexList(3, batch.embeddings.device)
        for first, tile in distance_rows(batch.cosine()):
            height = len(tile.similarity)
            rows, columns = tile.target.positive_pairs()
            same, _ = tile.target.non_negative_pairs()
            number = torch.bincount(rows, minlength=height)  # (rows,)
            draws = torch.bincount(same, minlength=height).masked_fill_(number == 0, 0)  # (rows,)
            anchors = torch.repeat_interleave(draws)  # (T,)
            random = torch.from_numpy(generator.random((len(anchors), 2))).to(rows.device)  # (T, 2)

            start = number.cumsum(0) - number
            positives = columns[start[anchors] + (random[:, 0] * number[anchors]).long()]  # (T,)
            tile.similarity[tile.target.non_negative_pairs()] = torch.inf
            able, negatives = _draw(self._weights(tile.similarity, dimension), anchors, draws, random[:, 1])
            found.add(anchors[able] + first, positives[able], negatives[able])
        return found.joined()

    def _weights(self, distances: Tensor, dimension: int) -> Tensor:
        """Weights of all negatives of each anchor, the largest 1, (rows, columns)."""
        d = distances.double()
        excluded = (d >= self.nonzero_loss_cutoff) | (d >= 2)
        d = d.clamp_(self.cutoff, 2.0)
        logarithm = (2 - dimension) * d.log() - (dimension - 3) / 2 * torch.log1p(-0.25 * d.square())
        logarithm.masked_fill_(excluded, -torch.inf)
        peak = logarithm.amax(1, keepdim=True).clamp_(min=torch.finfo(d.dtype).min)
        return logarithm.sub_(peak).exp_()

    def extra_repr(self) -> str:
        """The settings, as ``print(miner)`` shows them."""
        return f"cutoff={self.cutoff}, nonzero_loss_cutoff={self.nonzero_loss_cutoff}, seed={self.seed}"


def _draw(weights: Tensor, anchors: Tensor, draws: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """A column by weight for each draw of a row.

    Args:
        weights: (rows, columns).
        anchors: the row of each draw, sorted, (T,).
        draws: number of draws of each row, (rows,).
        random: in [0, 1), (T,).

    Returns:
        Which draws have anything to draw from, boolean (T,), and the columns (T,), meaningless for the others.
    """
    total = weights.cumsum(1)  # (rows, columns)
    if len(anchors) == 0:
        return anchors.bool(), anchors
    table = total.new_zeros(len(weights), int(draws.max()))
    slot = torch.arange(len(anchors), device=anchors.device) - (draws.cumsum(0) - draws)[anchors]  # (T,)
    # Rounding must not reach the total itself, which lies behind the last column.
    end = total[anchors, -1]
    table[anchors, slot] = torch.minimum(random * end, torch.nextafter(end, torch.zeros_like(end)))
    columns = torch.searchsorted(total, table, right=True)[anchors, slot]  # (T,)
    return end > 0, columns

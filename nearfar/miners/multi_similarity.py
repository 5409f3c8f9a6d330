"""Multi-Similarity miner: https://arxiv.org/abs/1904.06627 (Wang et al., CVPR 2019).

Pairs that are hard relative to the anchor's other pairs.
"""

from __future__ import annotations

import torch

from nearfar.losses.label_batch import LabelBatch
from nearfar.miners.in_batch import InBatchMiner, IndexList, Indices, cosine_rows, marked


class MultiSimilarityMiner(InBatchMiner):
    r"""Pairs of the Multi-Similarity loss's mining step, by cosine similarity s.

    A positive p of anchor i is kept when :math:`s_{ip} - \epsilon < \max_n s_{in}`, a negative n when
    :math:`s_{in} + \epsilon > \min_p s_{ip}`. An anchor needs both a positive and a negative.

    Args:
        epsilon: the slack; 0.1 (paper and pytorch-metric-learning).

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> (anchors, positives, anchors, negatives), int64, sorted by anchor.

    Raises:
        InputError: see ``InBatchMiner.forward``.

    Example:
        >>> import torch
        >>> from nearfar.miners import MultiSimilarityMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> [part.tolist() for part in MultiSimilarityMiner()(x, torch.tensor([0, 0, 1, 1]))]
        [[1, 2], [0, 3], [1, 2], [2, 1]]

    Source: pytorch-metric-learning, which sorts two matrices for the same pairs; they come in another order there.
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = float(epsilon)

    def find(self, batch: LabelBatch) -> Indices:
        """Both kinds of pairs, a block of anchors at a time."""
        found = IndexList(4, batch.embeddings.device)
        for first, tile in cosine_rows(batch.cosine()):
            s = tile.similarity
            rows, columns = tile.target.positive_pairs()
            own = s[rows, columns]  # (P,)
            weakest = s.new_full((len(s),), torch.inf).scatter_reduce_(0, rows, own, "amin")  # (rows,)
            s[tile.target.non_negative_pairs()] = -torch.inf
            strongest = s.amax(1)  # (rows,)
            hard = own - self.epsilon < strongest[rows]
            anchors, negatives = marked(s.add_(self.epsilon) > weakest[:, None])
            found.add(rows[hard] + first, columns[hard], anchors + first, negatives)
        return found.joined()

    def extra_repr(self) -> str:
        """The settings, as ``print(miner)`` shows them."""
        return f"epsilon={self.epsilon}"

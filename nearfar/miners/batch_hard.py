"""Batch-hard mining: https://arxiv.org/abs/1703.07737 (Hermans et al., 2017).

Each anchor with its farthest positive and its nearest negative.
"""

from __future__ import annotations

import torch

from nearfar.losses.label_batch import LabelBatch
from nearfar.miners.in_batch import InBatchMiner, IndexList, Indices, cosine_rows, row_extreme


class BatchHardMiner(InBatchMiner):
    """One triplet for every anchor that has a positive and a negative: its farthest positive, its nearest negative.

    Distances are those of unit vectors. Of equally far ones the first is taken.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> (anchors, positives, negatives), int64, at most B of each, sorted
        by anchor.

    Raises:
        InputError: see ``InBatchMiner.forward``.

    Example:
        >>> import torch
        >>> from nearfar.miners import BatchHardMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> [part.tolist() for part in BatchHardMiner()(x, torch.tensor([0, 0, 1, 1]))]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 1, 1]]

    Source: pytorch-metric-learning. Cosines order as the distances do there, but keep apart what those round together.
    """

    def find(self, batch: LabelBatch) -> Indices:
        """A block of anchors at a time."""
        found = IndexList(3, batch.embeddings.device)
        for first, tile in cosine_rows(batch.cosine()):
            s = tile.similarity
            rows, columns = tile.target.positive_pairs()
            weakest, positives = row_extreme(s[rows, columns], rows, columns, len(s))
            s[tile.target.non_negative_pairs()] = -torch.inf
            strongest, negatives = s.max(1)
            anchors = ((weakest < torch.inf) & (strongest > -torch.inf)).nonzero().squeeze(1)
            found.add(anchors + first, positives[anchors], negatives[anchors])
        return found.joined()

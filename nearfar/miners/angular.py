"""Angular mining: https://arxiv.org/abs/1708.01682 (Wang et al., ICCV 2017).

Triplets whose negative sees anchor and positive under too wide an angle.
"""

from __future__ import annotations

import math

import torch

from nearfar.errors import InputError
from nearfar.losses.engine import Comparison, Euclidean
from nearfar.losses.label_batch import LabelBatch
from nearfar.miners.in_batch import InBatchMiner, IndexList, Indices, marked


class AngularMiner(InBatchMiner):
    r"""Triplets with :math:`\arctan(|a - p| / (2 |n - c|))` above an angle, where c is the middle of a and p.

    Embeddings are taken as they come, since pytorch-metric-learning does not normalise them here either; the angle
    does not change with their common scale. Distances are from differences, a block of pairs of anchor and positive
    with all references at a time: the time is that of P x N distances per anchor, the memory that of the triplets
    found.

    Args:
        angle: in degrees, 0 up to 90; 20 (pytorch-metric-learning).

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> (anchors, positives, negatives), int64, sorted in this order.

    Raises:
        InputError: for an angle outside [0, 90), and see ``InBatchMiner.forward``.

    Example:
        >>> import torch
        >>> from nearfar.miners import AngularMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> [part.tolist() for part in AngularMiner()(x, torch.tensor([0, 0, 1, 1]))]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 1, 1]]

    Source: pytorch-metric-learning, which gathers three vectors for every triplet of the batch. It shifts differences
    by 1e-6, so that there an anchor and its exact copy span an angle.
    """

    def __init__(self, angle: float = 20) -> None:
        super().__init__()
        if not 0 <= angle < 90:
            raise InputError(f"angle={angle!r} must lie in [0, 90): it is in degrees")
        self.angle = float(angle)

    def find(self, batch: LabelBatch) -> Indices:
        """A block of pairs of anchor and positive at a time."""
        points, references = batch.embeddings, batch.ref_emb
        comparison = Comparison(points, references, batch.target())
        twice_tangent = 2 * math.tan(math.radians(self.angle))
        found = IndexList(3, points.device)
        for block in comparison.row_blocks():
            target = comparison.target.tile(block, slice(0, len(references)))
            rows, columns = target.positive_pairs()
            for part in torch.split(torch.arange(len(rows), device=rows.device), target.shape[0]):
                anchors, positives = points[block][rows[part]], references[columns[part]]  # (part, D)
                height = Euclidean().dense((anchors + positives) / 2, references)  # (part, columns)
                base = torch.linalg.vector_norm(anchors - positives, dim=1, keepdim=True)  # (part, 1)
                wide = (height * twice_tangent < base) & target.negative[rows[part]]  # (part, columns)
                pair, negatives = marked(wide)
                found.add(rows[part[pair]] + block.start, columns[part[pair]], negatives)
        return found.joined()

    def extra_repr(self) -> str:
        """The settings, as ``print(miner)`` shows them."""
        return f"angle={self.angle}"

"""Contrastive loss: http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf (Hadsell et al., CVPR 2006).

Pulls positives together and pushes negatives apart until each side has its margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import Comparison, Sum, Tile, UnitEuclidean, statistics
from nearfar.losses.engine.active_pairs import dot_products, find_pairs
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.similarity import unit_distance
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.label_batch import LabelBatch
from nearfar.losses.metrix import GradedPairs


class ContrastiveLoss(LabelLoss):
    r"""Contrastive loss on labels, under pytorch-metric-learning's name and defaults.

    .. math::
        L = \operatorname{mean}_{d_{ip} > m_p} (d_{ip} - m_p) + \operatorname{mean}_{d_{in} < m_n} (m_n - d_{in})

    on Euclidean distances d of unit vectors. Each mean is over the pairs of its side whose loss is above 0, as
    pytorch-metric-learning's default ``AvgNonZeroReducer`` does. Not squared, unlike the paper (from memory).

    Args:
        pos_margin: positives nearer than this are left alone; 0 (pytorch-metric-learning).
        neg_margin: negatives farther than this are left alone; 1 (pytorch-metric-learning). Distances lie in [0, 2].
        reduction: "mean" only: both means are over pairs of the whole batch.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar.

    Raises:
        InputError: for ``reduction="none"``, or when a shape does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import ContrastiveLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(ContrastiveLoss()(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.262

    Source: pytorch-metric-learning. There a pair mined twice counts twice; here once.
    """

    paper = "http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf"
    capabilities = Capabilities(inputs="labels", unreduced=False, mixing=True)
    splits_rows = True
    citation = """@inproceedings{hadsell2006dimensionality,
    title = {Dimensionality Reduction by Learning an Invariant Mapping},
    author = {Hadsell, Raia and Chopra, Sumit and LeCun, Yann},
    booktitle = {CVPR},
    year = {2006}
}"""

    def __init__(
        self,
        pos_margin: float = 0,
        neg_margin: float = 1,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"pos_margin": self.pos_margin, "neg_margin": self.neg_margin, **super().settings()}

    def compute(self, batch: LabelBatch) -> Tensor:
        """The two means."""
        comparison = replace(batch.cosine(), similarity=UnitEuclidean())
        if self.path == "streamed" and comparison.shard is None and not comparison.is_empty:
            active = find_pairs(comparison, self.active)
            if active is not None:
                return self._from_pairs(comparison, *active)
        return self._from_statistics(comparison)

    def of_graded(self, pairs: GradedPairs) -> Tensor:
        """The two means over the graded pairs that pull, and over those that push."""
        distance = unit_distance(pairs.similarity)  # (P,)
        pull = pairs.grades * (distance - self.pos_margin).relu()
        push = (1 - pairs.grades) * (self.neg_margin - distance).relu()
        pulled, pushed = torch.count_nonzero(pull), torch.count_nonzero(push)
        return self.average(pull.sum(), pulled) + self.average(push.sum(), pushed)

    def active(self, tile: Tile) -> tuple[Pairs, Pairs]:
        """The active positives and negatives of a tile of complete rows."""
        d, target = tile.similarity, tile.target
        rows, columns = target.positive_pairs()
        far = d[rows, columns] > self.pos_margin
        d[target.non_negative_pairs()] = torch.inf
        near_rows, near_columns = (d < self.neg_margin).nonzero(as_tuple=True)
        return (rows[far], columns[far]), (near_rows, near_columns)

    def _from_pairs(self, comparison: Comparison, positives: Pairs, negatives: Pairs) -> Tensor:
        with full_precision(comparison.rows.device):
            comparison = comparison.in_full_precision()
            far = unit_distance(dot_products(comparison.rows, comparison.columns, positives))  # (positives,)
            near = unit_distance(dot_products(comparison.rows, comparison.columns, negatives))  # (negatives,)
            pull, push = (far - self.pos_margin).relu(), (self.neg_margin - near).relu()
            # A pair on its margin may fall to either side by rounding: those that push or pull are counted.
            pulled, pushed = torch.count_nonzero(pull), torch.count_nonzero(push)
            return pull.sum() / pulled.clamp(min=1) + push.sum() / pushed.clamp(min=1)

    def _from_statistics(self, comparison: Comparison) -> Tensor:
        count = Sum("all", differentiable=False)
        kinds = {"pull": Sum("all"), "pulled": count, "push": Sum("all"), "pushed": count}
        if self.path == "dense":
            found = statistics(comparison, kinds, self.tile, "dense")
        else:
            found = statistics(comparison, kinds, self._listed, tile_gradient=self._gradient)
        pull = found["pull"] / found["pulled"].clamp(min=1)
        push = found["push"] / found["pushed"].clamp(min=1)
        return pull + push

    def tile(self, tile: Tile) -> dict[str, Tensor]:
        """Sum and number of the active pairs of each side."""
        pull = (tile.similarity - self.pos_margin).masked_fill(~tile.target.positive, 0.0).relu()
        push = (self.neg_margin - tile.similarity).masked_fill(~tile.target.negative, 0.0).relu()
        return {
            "pull": pull.sum(),
            "pulled": torch.count_nonzero(pull),
            "push": push.sum(),
            "pushed": torch.count_nonzero(push),
        }

    def _listed(self, tile: Tile) -> dict[str, Tensor]:
        """The same with the few positives as a list."""
        d, target = tile.similarity, tile.target
        pull = (d[target.positive_pairs()] - self.pos_margin).relu_()  # (P,)
        push = (self.neg_margin - d).relu_()  # (rows, columns)
        push[target.non_negative_pairs()] = 0
        pull_sum, push_sum = pull.sum(), push.sum()
        # Signs are counted in place: comparing takes several times as long.
        return {"pull": pull_sum, "pulled": pull.sign_().sum(), "push": push_sum, "pushed": push.sign_().sum()}

    def _gradient(self, tile: Tile, _: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> Tensor:
        """Gradient of both sums: the same for every active pair of a side."""
        d, target = tile.similarity, tile.target
        gradient = (self.neg_margin - d).relu_().sign_().mul_(-cotangents["push"])  # (rows, columns)
        gradient[target.non_negative_pairs()] = 0
        pairs = target.positive_pairs()
        # Added, not set: a pair mined as positive and as negative counts as both.
        gradient[pairs] += (d[pairs] > self.pos_margin) * cotangents["pull"]
        return gradient

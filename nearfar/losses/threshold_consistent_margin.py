"""Threshold-Consistent Margin: https://arxiv.org/abs/2307.04047 (Zhang et al., ICLR 2024).

Holds positives of every class above one similarity and negatives below another, so that one threshold serves all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import Comparison, Sum, Tile, statistics
from nearfar.losses.engine.active_pairs import dot_products, find_pairs
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.label_batch import LabelBatch
from nearfar.losses.metrix import GradedPairs


class ThresholdConsistentMarginLoss(LabelLoss):
    r"""Threshold-Consistent Margin (TCM), a regulariser to add to a base loss.

    .. math::
        L = \lambda_+ \operatorname*{mean}_{s_p \le m_+} (m_+ - s_p)
            + \lambda_- \operatorname*{mean}_{s_n \ge m_-} (s_n - m_-)

    Each mean is over the active pairs of the whole batch only; a side without active pairs is 0.

    Args:
        lambda_plus: weight of the positives; 1 (paper, section 5.2, as pytorch-metric-learning states it).
        lambda_minus: weight of the negatives; 1 (same source).
        margin_plus: positives below this cosine are pulled; 0.9 (same source). Larger regularises more.
        margin_minus: negatives above this cosine are pushed; 0.5 (same source). Smaller regularises more.
        reduction: "mean" only: the loss has no value per anchor.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar.

    Raises:
        InputError: for ``reduction="none"``, or a shape that does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import ThresholdConsistentMarginLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(ThresholdConsistentMarginLoss()(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.6

    Source: no official code is public; formula as in pytorch-metric-learning, which however reads positives and
    negatives of a reference set in the batch itself. Here reference sets are honoured.
    """

    paper = "https://arxiv.org/abs/2307.04047"
    capabilities = Capabilities(inputs="labels", unreduced=False, mixing=True)
    splits_rows = True
    citation = """@inproceedings{zhang2024threshold,
    title = {Threshold-Consistent Margin Loss for Open-World Deep Metric Learning},
    author = {Zhang, Qin and Xu, Linghan and Tang, Qingming and Fang, Jun and Wu, Ying Nian and
        Tighe, Joe and Xing, Yifan},
    booktitle = {ICLR},
    year = {2024}
}"""

    def __init__(
        self,
        lambda_plus: float = 1,
        lambda_minus: float = 1,
        margin_plus: float = 0.9,
        margin_minus: float = 0.5,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.lambda_plus, self.lambda_minus = lambda_plus, lambda_minus
        self.margin_plus, self.margin_minus = margin_plus, margin_minus

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        weights = {"lambda_plus": self.lambda_plus, "lambda_minus": self.lambda_minus}
        return {**weights, "margin_plus": self.margin_plus, "margin_minus": self.margin_minus}

    def tile(self, tile: Tile) -> dict[str, Tensor]:
        """Sum and number of the active pairs of each side."""
        s = tile.similarity
        weak = tile.target.positive & (s <= self.margin_plus)  # (rows, columns)
        strong = tile.target.negative & (s >= self.margin_minus)  # (rows, columns)
        return {
            "positive_sum": (self.margin_plus - s).masked_fill(~weak, 0.0).sum(),
            "positive_count": weak.sum(),
            "negative_sum": (s - self.margin_minus).masked_fill(~strong, 0.0).sum(),
            "negative_count": strong.sum(),
        }

    def active(self, tile: Tile) -> tuple[Pairs, Pairs]:
        """The active positives and negatives of a tile of complete rows."""
        s, target = tile.similarity, tile.target
        rows, columns = target.positive_pairs()
        weak = s[rows, columns] <= self.margin_plus
        s[target.non_negative_pairs()] = -torch.inf
        strong_rows, strong_columns = (s >= self.margin_minus).nonzero(as_tuple=True)
        return (rows[weak], columns[weak]), (strong_rows, strong_columns)

    def compute(self, batch: LabelBatch) -> Tensor:
        """The two means, weighted."""
        comparison = batch.cosine()
        if self.path == "streamed" and comparison.shard is None and not comparison.is_empty:
            active = find_pairs(comparison, self.active)
            if active is not None:
                return self._from_pairs(comparison, *active)
        return self._from_statistics(comparison)

    def of_graded(self, pairs: GradedPairs) -> Tensor:
        """The two means over the active graded pairs, weighted."""
        s, grades = pairs.similarity, pairs.grades
        weak, strong = s <= self.margin_plus, s >= self.margin_minus
        pull = (grades * (self.margin_plus - s)).masked_fill(~weak, 0.0).sum()
        push = ((1 - grades) * (s - self.margin_minus)).masked_fill(~strong, 0.0).sum()
        pull, push = self.average(pull, weak.sum()), self.average(push, strong.sum())
        return self.lambda_plus * pull + self.lambda_minus * push

    def _from_pairs(self, comparison: Comparison, positives: Pairs, negatives: Pairs) -> Tensor:
        with full_precision(comparison.rows.device):
            comparison = comparison.in_full_precision()
            weak = dot_products(comparison.rows, comparison.columns, positives)  # (active positives,)
            strong = dot_products(comparison.rows, comparison.columns, negatives)  # (active negatives,)
            pull = (self.margin_plus - weak).sum() / max(1, len(weak))
            push = (strong - self.margin_minus).sum() / max(1, len(strong))
            return self.lambda_plus * pull + self.lambda_minus * push

    def _from_statistics(self, comparison: Comparison) -> Tensor:
        count = Sum("all", differentiable=False)
        kinds = {
            "positive_sum": Sum("all"),
            "positive_count": count,
            "negative_sum": Sum("all"),
            "negative_count": count,
        }
        found = statistics(comparison, kinds, self.tile, self.path)
        pull = found["positive_sum"] / found["positive_count"].clamp(min=1)
        push = found["negative_sum"] / found["negative_count"].clamp(min=1)
        return self.lambda_plus * pull + self.lambda_minus * push

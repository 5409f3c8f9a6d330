"""Multi-Similarity loss: https://arxiv.org/abs/1904.06627 (Wang et al., CVPR 2019).

Weighs each pair by its own similarity and by how it stands among the anchor's other pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss
from nearfar.losses.engine import (
    RowGradient,
    RowValues,
    Tile,
    masked_logsumexp,
    segment_logsumexp,
    softplus,
)
from nearfar.losses.metrix import GradedPairs


class MultiSimilarityLoss(RowLocalLabelLoss):
    r"""Multi-Similarity loss on labels, with or without its own pair mining.

    .. math::
        L_i = \tfrac1\alpha \log\Bigl(1 + \sum_{p} e^{-\alpha (s_{ip} - \lambda)}\Bigr)
            + \tfrac1\beta \log\Bigl(1 + \sum_{n} e^{\beta (s_{in} - \lambda)}\Bigr)

    averaged over all anchors of the batch, those without pairs included. With ``mining_margin`` only positives less
    similar than the anchor's hardest negative plus the margin count, and only negatives more similar than its hardest
    positive minus the margin; this choice has no gradient.

    Args:
        alpha: scale of the positives; 2 (paper, from memory; official code and pytorch-metric-learning agree).
        beta: scale of the negatives; 50 (paper, from memory; pytorch-metric-learning), 40 in the official code.
        base: the similarity around which pairs are weighed; 0.5 (official code; 1 in the paper, from memory).
        mining_margin: the paper's epsilon, 0.1 there; None uses all pairs, as pytorch-metric-learning does.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: when a scale is not above 0, the margin is negative, or a shape does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import MultiSimilarityLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> loss = MultiSimilarityLoss(mining_margin=0.1)
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.2995

    Source: the official implementation, except that a sample's pair with itself is removed by index; removing it by
    its similarity, as there, also removes exact duplicates.
    """

    paper = "https://arxiv.org/abs/1904.06627"
    capabilities = Capabilities(inputs="labels", mixing=True, synthesis=True)
    citation = """@inproceedings{wang2019multi,
    title = {Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning},
    author = {Wang, Xun and Han, Xintong and Huang, Weilin and Dong, Dengke and Scott, Matthew R.},
    booktitle = {CVPR},
    year = {2019}
}"""

    def __init__(
        self,
        alpha: float = 2,
        beta: float = 50,
        base: float = 0.5,
        *,
        mining_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.alpha = check_positive("alpha", alpha)
        self.beta = check_positive("beta", beta)
        self.base = base
        if mining_margin is not None and mining_margin < 0:
            raise InputError(f"mining_margin={mining_margin!r} is negative; use 0.1 (paper), or None for all pairs")
        self.mining_margin = mining_margin

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        own = {"alpha": self.alpha, "beta": self.beta, "base": self.base, "mining_margin": self.mining_margin}
        return {**own, **super().settings()}

    def rows(self, tile: Tile) -> RowValues:
        """Loss per anchor; every anchor counts."""
        s, positive, negative = tile.similarity, tile.target.positive, tile.target.negative
        if self.mining_margin is not None:
            fixed = s.detach()
            hardest_negative = fixed.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)  # (rows, 1)
            hardest_positive = fixed.masked_fill(~positive, torch.inf).amin(1, keepdim=True)  # (rows, 1)
            positive = positive & (fixed - self.mining_margin < hardest_negative)
            negative = negative & (fixed + self.mining_margin > hardest_positive)
        pull = softplus(masked_logsumexp(-self.alpha * (s - self.base), positive)) / self.alpha  # (rows,)
        push = softplus(masked_logsumexp(self.beta * (s - self.base), negative)) / self.beta  # (rows,)
        return pull + push, torch.ones_like(pull, dtype=torch.bool)

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: every pair as a negative, then the few positives put right."""
        s, target = tile.similarity, tile.target
        rows, columns = target.positive_pairs()
        s_p = s[rows, columns]  # (P,)
        scores = tile.space("scores", s).copy_(s)  # (rows, columns)
        scores[target.non_negative_pairs()] = -torch.inf
        if self.mining_margin is not None:
            rows, columns, s_p = self._mine(scores, rows, columns, s_p)

        push = scores.sub_(self.base).mul_(self.beta)  # (rows, columns)
        peak = push.amax(1).clamp_(min=0)  # (rows,); the 1 in log(1 + sum) is e^0
        push.sub_(peak[:, None]).exp_()
        push_sum = push.sum(1) + (-peak).exp()  # (rows,)
        value = (push_sum.log() + peak) / self.beta
        gradient = push.div_(push_sum[:, None])  # (rows, columns)

        pull = -self.alpha * (s_p - self.base)  # (P,)
        pull_value = softplus(segment_logsumexp(pull, rows, len(s)))  # (rows,)
        pair_gradient = (pull - pull_value[rows]).exp_().neg_()
        # Added, not set: a pair mined as positive and as negative counts as both.
        gradient[rows, columns] += pair_gradient
        return value + pull_value / self.alpha, torch.ones_like(value, dtype=torch.bool), gradient

    def graded_rows(self, pairs: GradedPairs) -> RowValues:
        """The same of graded pairs, without the mining; every anchor counts."""
        s = pairs.similarity - self.base  # (P,)
        pull = segment_logsumexp(pairs.grades.log() - self.alpha * s, pairs.anchors, pairs.anchor_count)  # (rows,)
        push = segment_logsumexp((1 - pairs.grades).log() + self.beta * s, pairs.anchors, pairs.anchor_count)  # (rows,)
        values = softplus(pull) / self.alpha + softplus(push) / self.beta
        return values, torch.ones_like(values, dtype=torch.bool)

    def _mine(self, negatives: Tensor, rows: Tensor, columns: Tensor, s_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the informative pairs: fill ``negatives`` with -inf elsewhere, shorten the positives."""
        assert self.mining_margin is not None
        hardest_negative = negatives.amax(1)  # (rows,)
        no_positive = negatives.new_full((len(negatives),), torch.inf)
        hardest_positive = no_positive.scatter_reduce_(0, rows, s_p, "amin")  # (rows,)
        uninformative = negatives + self.mining_margin <= hardest_positive[:, None]
        negatives.masked_fill_(uninformative, -torch.inf)
        keep = s_p - self.mining_margin < hardest_negative[rows]
        return rows[keep], columns[keep], s_p[keep]

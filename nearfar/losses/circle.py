"""Circle loss: https://arxiv.org/abs/2002.10857 (Sun et al., CVPR 2020).

Pulls each similarity towards its own optimum, the farther away the harder.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice, check_positive
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss
from nearfar.losses.engine import (
    Comparison,
    LogSumExp,
    RowGradient,
    RowValues,
    Tile,
    masked_logsumexp,
    segment_logsumexp,
    softplus,
    statistics,
)
from nearfar.losses.label_batch import LabelBatch
from nearfar.losses.metrix import GradedPairs


class CircleLoss(RowLocalLabelLoss):
    r"""Circle loss on labels, one decision per anchor.

    .. math::
        L_i = \operatorname{softplus}\Bigl(
            \operatorname{LSE}_{n} \gamma [s_n + m]_+ (s_n - m)
            + \operatorname{LSE}_{p} -\gamma [1 + m - s_p]_+ (s_p - 1 + m)\Bigr)

    where the factors in brackets are constants of the step (no gradient). The loss is the mean over the anchors that
    have a positive and a negative; with ``grouping="all_pairs"`` it is one such decision, of all positive pairs of the
    batch against all negative ones, each unordered pair once. It is large by construction and ``gamma`` multiplies its
    gradient, so it wants a lower learning rate than a cross-entropy.

    Args:
        m: relaxation of the margin, in cosine; 0.4 for fine-grained retrieval, 0.25 for faces (paper, from memory;
            repeated in pytorch-metric-learning's documentation).
        gamma: scale; 80 for fine-grained retrieval, 128 for person re-identification, 256 for faces (same source).
        grouping: "anchor" (fast-reid, pytorch-metric-learning) or "all_pairs" (the best-known public implementation,
            TinyZeaMays), which has no value per row.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: when ``gamma`` is not above 0, for ``reduction="none"`` with all pairs, or when a shape does not
            fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import CircleLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> loss = CircleLoss(m=0.25, gamma=2)
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.4851

    Source: the per-anchor form of fast-reid and pytorch-metric-learning, which unlike the latter keeps anchors whose
    loss underflows to zero in the mean.
    """

    paper = "https://arxiv.org/abs/2002.10857"
    capabilities = Capabilities(inputs="labels", mixing=True, synthesis=True)
    citation = """@inproceedings{sun2020circle,
    title = {Circle Loss: A Unified Perspective of Pair Similarity Optimization},
    author = {Sun, Yifan and Cheng, Changmao and Zhang, Yuhan and Zhang, Chi and Zheng, Liang and
        Wang, Zhongdao and Wei, Yichen},
    booktitle = {CVPR},
    year = {2020}
}"""

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80,
        grouping: Literal["anchor", "all_pairs"] = "anchor",
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.m = m
        self.gamma = check_positive("gamma", gamma)
        self.grouping = check_choice("grouping", grouping, ("anchor", "all_pairs"))
        if grouping == "all_pairs" and reduction == "none":
            raise InputError('grouping="all_pairs" has no value per row: use reduction="mean", not reduction="none"')

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"m": self.m, "gamma": self.gamma, "grouping": self.grouping, **super().settings()}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the anchors that count, a value per anchor, or one decision of all pairs."""
        if self.grouping == "anchor":
            return super().compute(batch)
        if batch.synthesis is not None:
            raise InputError('grouping="all_pairs" has no anchors to mix for: use grouping="anchor" with synthesis')
        if batch.is_self and batch.pairs is not None:
            a1, p, a2, n = batch.pairs
            unordered = (torch.minimum(a1, p), torch.maximum(a1, p), torch.minimum(a2, n), torch.maximum(a2, n))
            batch = replace(batch, pairs=unordered)
        found = statistics(
            self.compare(batch), {"pull": LogSumExp("all"), "push": LogSumExp("all")}, self.tile, self.path
        )
        # Labels meet each unordered pair twice, once from either side.
        twice = batch.is_self and batch.pairs is None
        return softplus(found["pull"] + found["push"] - (2 * math.log(2) if twice else 0))

    def compare_for_mixing(self, batch: LabelBatch) -> Comparison:
        """Anchors and references whose pairs are mixed."""
        if self.grouping == "all_pairs":
            raise InputError('grouping="all_pairs" has no anchors to mix for: use grouping="anchor" with mixing')
        return super().compare_for_mixing(batch)

    def tile(self, tile: Tile) -> dict[str, Tensor]:
        """Log-sum-exp of all positive and of all negative pairs."""
        pull, push = self._exponents(tile.similarity)
        return {
            "pull": masked_logsumexp(pull.flatten(), tile.target.positive.flatten(), dim=0),
            "push": masked_logsumexp(push.flatten(), tile.target.negative.flatten(), dim=0),
        }

    def _exponents(self, s: Tensor) -> tuple[Tensor, Tensor]:
        pull = -self.gamma * (1 + self.m - s.detach()).relu() * (s - (1 - self.m))  # (rows, columns)
        push = self.gamma * (s.detach() + self.m).relu() * (s - self.m)  # (rows, columns)
        return pull, push

    def rows(self, tile: Tile) -> RowValues:
        """Loss per anchor, and the anchors that have both a positive and a negative."""
        target = tile.target
        pull, push = self._exponents(tile.similarity)
        total = masked_logsumexp(push, target.negative) + masked_logsumexp(pull, target.positive)  # (rows,)
        return softplus(total), target.has_positive() & target.has_negative()

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: every pair as a negative, then the few positives put right."""
        s, target = tile.similarity, tile.target
        counted = target.has_positive() & target.has_negative()
        rows, columns = target.positive_pairs()
        s_p = s[rows, columns]
        pull_weight = (1 + self.m - s_p).relu_().mul_(-self.gamma)  # (P,)
        pull = pull_weight * (s_p - (1 - self.m))
        lse_p = segment_logsumexp(pull, rows, len(s))  # (rows,)

        push_weight = torch.add(s, self.m, out=tile.space("weight", s)).relu_().mul_(self.gamma)  # (rows, columns)
        push = torch.sub(s, self.m, out=tile.space("push", s)).mul_(push_weight)
        push[target.non_negative_pairs()] = -float("inf")
        peak = push.amax(1, keepdim=True).clamp_(min=-1e30)  # finite even for a row without negatives
        push.sub_(peak).exp_()
        push_sum = push.sum(1)  # (rows,)
        total = push_sum.log() + peak.squeeze(1) + lse_p  # (rows,)

        slope = total.sigmoid().masked_fill_(~counted, 0.0)
        gradient = push.mul_(push_weight).mul_((slope / push_sum.clamp(min=1e-38))[:, None])  # (rows, columns)
        # Added, not set: a pair mined as positive and as negative counts as both.
        gradient[rows, columns] += (pull - lse_p[rows]).exp_().mul_(pull_weight).mul_(slope[rows])
        return softplus(total), counted, gradient

    def graded_rows(self, pairs: GradedPairs) -> RowValues:
        """Loss per anchor of graded pairs, and the anchors that have any."""
        pull, push = self._exponents(pairs.similarity)  # (P,) each
        lse_p = segment_logsumexp(pairs.grades.log() + pull, pairs.anchors, pairs.anchor_count)  # (rows,)
        lse_n = segment_logsumexp((1 - pairs.grades).log() + push, pairs.anchors, pairs.anchor_count)  # (rows,)
        return softplus(lse_n + lse_p), torch.bincount(pairs.anchors, minlength=pairs.anchor_count) > 0

"""NT-Xent: https://arxiv.org/abs/2002.05709 (Chen et al., ICML 2020).

Each positive pair against the anchor's negatives; with labels, a pair's rivals never include other positives.
"""

from __future__ import annotations

import torch

from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss
from nearfar.losses.engine import (
    RowGradient,
    RowValues,
    Tile,
    masked_logsumexp,
    segment_sum,
    softplus,
)


class NTXentLoss(RowLocalLabelLoss):
    r"""Normalised temperature-scaled cross-entropy on labels, under pytorch-metric-learning's name and defaults.

    .. math::
        L = \frac1{|P|} \sum_{(i, p) \in P} \log\Bigl(1 + e^{-s_{ip} / \tau} \sum_{n \in N_i} e^{s_{in} / \tau}\Bigr)

    averaged over all positive pairs P of the batch: an anchor with more positives weighs more. A pair whose anchor has
    no negative counts as 0.

    Args:
        temperature: divides the cosine; 0.07 (pytorch-metric-learning), 0.1 to 0.5 in the paper (from memory).
        reduction: "mean" only: the mean is over pairs, not over rows.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar.

    Raises:
        InputError: when ``temperature`` is not above 0, for ``reduction="none"``, or when a shape does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import NTXentLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(NTXentLoss(temperature=1)(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.8021

    Source: pytorch-metric-learning, with two differences. There a small constant inside the logarithm bounds a pair's
    loss at 87 in float32 and takes its gradient away, which happens to hard pairs at low temperature; here loss and
    gradient are exact. There a pair mined twice counts twice; here once. Time and memory grow with the pairs of
    samples, not with positive times negative pairs.
    """

    paper = "https://arxiv.org/abs/2002.05709"
    capabilities = Capabilities(inputs="labels", unreduced=False, synthesis=True)
    citation = """@inproceedings{chen2020simple,
    title = {A Simple Framework for Contrastive Learning of Visual Representations},
    author = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
    booktitle = {ICML},
    year = {2020}
}"""

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.temperature = check_positive("temperature", temperature)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"temperature": self.temperature, **super().settings()}

    def rows(self, tile: Tile) -> RowValues:
        """Sum over the anchor's positives, and their number."""
        logits, positive = tile.similarity / self.temperature, tile.target.positive
        rivals = masked_logsumexp(logits, tile.target.negative)  # (rows,)
        terms = softplus(rivals[:, None] - logits).masked_fill(~positive, 0.0)  # (rows, columns)
        return terms.sum(1), positive.sum(1)

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: every pair as a negative, then the few positives put right."""
        s, target = tile.similarity, tile.target
        rows, columns = target.positive_pairs()
        push = s / self.temperature  # (rows, columns)
        pull = push[rows, columns]  # (P,)
        push[target.non_negative_pairs()] = -torch.inf
        peak = push.amax(1, keepdim=True).clamp_(min=-1e30)  # finite even for a row without negatives
        push.sub_(peak).exp_()
        push_sum = push.sum(1)  # (rows,)
        gap = (push_sum.log() + peak.squeeze(1))[rows] - pull  # (P,)
        slope = gap.sigmoid() / self.temperature  # (P,)

        per_row = segment_sum(slope, rows, len(s)) / push_sum.clamp(min=1e-38)
        gradient = push.mul_(per_row[:, None])  # (rows, columns)
        # Subtracted, not set: a pair mined as positive and as negative counts as both.
        gradient[rows, columns] -= slope
        return segment_sum(softplus(gap), rows, len(s)), torch.bincount(rows, minlength=len(s)), gradient

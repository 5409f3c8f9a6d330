"""Decoupled softmax: https://arxiv.org/abs/2310.10636 (Gupta et al., ICLR 2024).

Each positive competes with the negatives only, never with the query's other positives.
"""

from __future__ import annotations

import torch

from nearfar.losses.contract import Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import RowGradient, RowValues, Tile, masked_logsumexp, segment_sum, softplus


class DecoupledSoftmaxLoss(QueryDocumentLoss):
    r"""Decoupled softmax over documents, for queries with one or many positives.

    .. math::
        L_i = \frac1{|P_i|} \sum_{p \in P_i} w_{ip} \log\bigl(1 + e^{-s_{ip}} \sum_{n \in N_i} e^{s_{in}}\bigr),
        \qquad s = \cos / \text{temperature}

    averaged over the queries that have a positive. ``w`` is the graded relevance (1 for plain positives). With one
    positive a query it equals InfoNCE from queries to documents.

    Args:
        temperature: divides the cosine; 0.05 (official code, EURLex-4K and AmazonTitles-131K).
        scale: multiplies the cosine, instead of ``temperature``.
        false_negative_margin: see ``QueryDocumentLoss``; None (off).
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for both or neither of ``temperature`` and ``scale``, grades outside [0, 1], or misfitting shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import DecoupledSoftmaxLoss
        >>> queries, documents = torch.eye(3), torch.eye(3)
        >>> round(DecoupledSoftmaxLoss(temperature=1)(queries, documents).item(), 4)
        0.5514

    Source: the official implementation without its sampling of positives and with -inf in place of its -100.
    There, a query without a positive counts in the mean as 0; here it does not count.
    """

    paper = "https://arxiv.org/abs/2310.10636"
    citation = """@inproceedings{gupta2024dual,
    title = {Dual-Encoders for Extreme Multi-Label Classification},
    author = {Gupta, Nilesh and Khatri, Devvrit and Rawat, Ankit Singh and Bhojanapalli, Srinadh and
        Jain, Prateek and Dhillon, Inderjit S.},
    booktitle = {ICLR},
    year = {2024}
}"""

    def __init__(
        self,
        temperature: float | None = None,
        *,
        scale: float | None = None,
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if temperature is None and scale is None:
            temperature = 0.05
        super().__init__(
            temperature,
            scale,
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query, and the queries that have a positive."""
        logits, positive = self.scale * tile.similarity, tile.target.positive
        rivals = masked_logsumexp(logits, self.negatives(tile))  # (rows,)
        weights = tile.target.relevance(logits.dtype).masked_fill(~positive, 0.0)
        terms = softplus(rivals[:, None] - logits) * weights  # (rows, columns)
        return terms.sum(1) / positive.sum(1).clamp(min=1), tile.target.has_positive()

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: every pair as a negative, then the few positives put right."""
        s, target = tile.similarity, tile.target
        pairs = rows, columns = target.positive_pairs()
        number = torch.bincount(rows, minlength=len(s)).clamp_(min=1)  # (rows,)
        share = target.positive_weights(pairs, s.dtype) / number[rows]  # (P,)

        push = torch.mul(s, self.scale, out=tile.space("push", s))  # (rows, columns)
        s_p = push[rows, columns]  # (P,)
        push[target.non_negative_pairs()] = -torch.inf
        peak = push.amax(1, keepdim=True).clamp_(min=-1e30)  # finite even for a row without negatives
        push.sub_(peak).exp_()
        push_sum = push.sum(1)  # (rows,)
        gap = (push_sum.log() + peak.squeeze(1))[rows] - s_p  # (P,)
        slope = gap.sigmoid() * share * self.scale  # (P,)

        per_row = segment_sum(slope, rows, len(s)) / push_sum.clamp(min=1e-38)
        gradient = push.mul_(per_row[:, None])  # (rows, columns)
        gradient[rows, columns] = -slope
        values = segment_sum(softplus(gap) * share, rows, len(s))
        return values, target.has_positive(), gradient

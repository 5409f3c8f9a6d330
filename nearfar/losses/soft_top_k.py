"""SoftTop-k: https://arxiv.org/abs/2310.10636 (Gupta et al., ICLR 2024).

Asks that the positives be among the k best documents, not that each be the best.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import RowGradient, RowValues, Tile, segment_sum, softplus

_NEVER = -1e30  # the logit of an ignored document: finite, so that no difference of two is NaN
_MOST_STEPS = 100  # a bisection alone would need fewer


class SoftTopKLoss(QueryDocumentLoss):
    r"""Soft top-k over documents, for queries with one or many positives.

    .. math::
        L_i = -\frac1{|P_i|} \sum_{p \in P_i} w_{ip} \log \sigma\bigl(\alpha (s_{ip} + t_i)\bigr), \qquad
        \sum_{j \in P_i \cup N_i} \sigma\bigl(\alpha (s_{ij} + t_i)\bigr) = k, \qquad s = \cos / \text{temperature}

    averaged over the queries that have a positive and more than k documents. The threshold t is solved to the
    precision of the embeddings' type by Newton steps inside a bracket; its gradient is the implicit one. w is the
    graded relevance (1 for plain positives).

    Args:
        k: how many documents are on top; 5 (official code; choose the cutoff of the evaluation), or "positives" for
            each query's number of positives, which sorts every row.
        alpha: sharpness, on similarities already divided by the temperature; 2 (official code).
        temperature: divides the cosine; 0.05 (official code, EURLex-4K and AmazonTitles-131K).
        scale: multiplies the cosine, instead of ``temperature``.
        false_negative_margin: see ``QueryDocumentLoss``; None (off).
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for ``k`` below 1, ``alpha`` not above 0, both ``temperature`` and ``scale``, grades outside
            [0, 1], or misfitting shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import SoftTopKLoss
        >>> queries, documents = torch.eye(3), torch.eye(3)
        >>> round(SoftTopKLoss(k=1, temperature=1)(queries, documents).item(), 4)
        0.4652

    Source: the official implementation without its sampling of positives, with ignored documents left out in place of
    its logit of -100, and with an exact threshold in place of 32 bisections. There, a query without a positive counts
    in the mean as 0; here it does not count.
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
        k: int | Literal["positives"] = 5,
        alpha: float = 2.0,
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
        if k != "positives" and (not isinstance(k, int) or k < 1):
            raise InputError(f"k={k!r} must be an integer of at least 1, or 'positives'")
        self.k = k
        self.alpha = check_positive("alpha", alpha)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"k": self.k, "alpha": self.alpha, **super().settings()}

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query, and the queries that have a positive and more than k documents."""
        s, positive = tile.similarity, tile.target.positive
        valid = positive | self.negatives(tile)
        number = positive.sum(1)  # (rows,)
        k, counted = self._sizes(number, valid.sum(1))
        if self._is_trivial(s):
            return s.sum(1) * 0, torch.zeros_like(counted)
        scores = s.masked_fill(~valid, _NEVER).masked_fill(~counted[:, None], 0.0)
        kth, best = self._best(scores.detach(), k)  # (rows, 1), (rows, k + 1)
        logits = (scores - kth) * (self.alpha * self.scale)  # (rows, columns)
        threshold = _Threshold.apply(logits, best, k)  # type: ignore[no-untyped-call]
        weights = tile.target.relevance(s.dtype).masked_fill(~positive, 0.0)
        terms = weights * softplus(-(logits + threshold)).masked_fill(~positive, 0.0)
        return terms.sum(1) / number.clamp(min=1), counted

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form."""
        s, target = tile.similarity, tile.target
        pairs = target.positive_pairs()
        rows = pairs[0]
        non_negatives, count = target.non_negative_pairs(), len(s)
        number = torch.bincount(rows, minlength=count)  # (rows,)
        ignored = torch.bincount(non_negatives[0], minlength=count) - number
        k, counted = self._sizes(number, s.shape[1] - ignored)
        if self._is_trivial(s):
            return s.sum(1), torch.zeros_like(counted), torch.zeros_like(s)
        share = (target.positive_weights(pairs, s.dtype) / number[rows]).masked_fill_(~counted[rows], 0.0)  # (P,)

        own = s[pairs]
        logits = s.index_put(non_negatives, s.new_tensor(_NEVER))  # (rows, columns)
        logits[pairs] = own
        logits[~counted] = 0.0
        sharpness = self.alpha * self.scale
        kth, best = self._best(logits, k)  # (rows, 1), (rows, k + 1)
        logits.sub_(kth).mul_(sharpness)
        logits.add_(soft_top_k_threshold(logits, best, k))
        own = logits[pairs]
        values = segment_sum(share * softplus(-own), rows, count)

        slope = share * torch.sigmoid(-own) * sharpness  # (P,)
        gradient = _slopes_(logits)  # (rows, columns)
        gradient.mul_((segment_sum(slope, rows, count) / gradient.sum(1))[:, None])
        gradient[pairs] -= slope
        return values, counted, gradient

    def _sizes(self, number: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """The k of each row (rows,), 1 in rows that do not count, and which rows count."""
        k = number if self.k == "positives" else torch.full_like(number, int(self.k))
        counted = (number > 0) & (documents > k)
        return k.masked_fill(~counted, 1), counted

    def _is_trivial(self, scores: Tensor) -> bool:
        return scores.shape[1] <= (1 if self.k == "positives" else int(self.k))

    def _best(self, scores: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The k-th best score of each row (rows, 1), and the best in order as logits relative to it."""
        if self.k == "positives":
            best = scores.sort(1, descending=True).values
        else:
            best = scores.topk(int(self.k) + 1, dim=1).values
        kth = best.gather(1, k[:, None] - 1)
        return kth, (best - kth) * (self.alpha * self.scale)


class _Threshold(torch.autograd.Function):
    """The threshold with its implicit gradient, of which autograd takes further derivatives."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, best: Tensor, k: Tensor) -> Tensor:
        threshold: Tensor = soft_top_k_threshold(logits, best, k)
        ctx.save_for_backward(logits, threshold)
        return threshold

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, threshold = ctx.saved_tensors
        shifted = logits + threshold  # (rows, columns)
        # Shares of the slopes z (1 - z), from their logarithms: with a wide gap at the threshold all underflow.
        shares = (F.logsigmoid(shifted) + F.logsigmoid(-shifted)).softmax(1)
        return -gradient * shares, None, None


# Opaque to torch.compile, which cannot trace a loop that ends when it has converged.
@torch.library.custom_op("nearfar::soft_top_k_threshold", mutates_args=())
def soft_top_k_threshold(logits: Tensor, best: Tensor, k: Tensor) -> Tensor:
    """Solve ``sum_j sigmoid(logits_j + t) = k`` for t in every row.

    Args:
        logits: (rows, columns), shifted so that the k-th best of each row is 0.
        best: the best of each row in descending order, (rows, at least k + 1).
        k: integers (rows,), each above 0 and below the number of columns.

    Returns:
        t, (rows, 1).
    """
    size = k.to(logits.dtype)[:, None]  # (rows, 1)
    next_best = best.gather(1, k[:, None])  # (rows, 1)
    # Beyond the best k, in logarithm: their sigmoids are below exponentials.
    rest = next_best + (logits - next_best).clamp_(max=0).exp_().sum(1, keepdim=True).sub_(size).clamp_(min=1).log_()
    low = -torch.logaddexp(rest, torch.zeros_like(rest))
    high = size.log() - next_best
    # Exact where a wide gap separates the best k from the rest: what these lack is what those have.
    beyond = torch.arange(best.shape[1], device=best.device) >= k[:, None]  # (rows, at least k + 1)
    lack = (-best).masked_fill_(beyond, -torch.inf).logsumexp(1, keepdim=True)
    threshold = ((lack - rest) / 2).clamp_(low, high)
    found = torch.empty_like(threshold)
    active = torch.arange(len(logits), device=logits.device)
    state = _Search(logits, size, low, high, threshold)
    for _ in range(_MOST_STEPS):
        done = state.step()
        found[active] = state.threshold
        if bool(done.all()):
            break
        if bool(done.any()):
            active, state = active[~done], state.only(~done)
    return found


@soft_top_k_threshold.register_fake
def _(logits: Tensor, best: Tensor, k: Tensor) -> Tensor:
    return logits.new_empty(len(logits), 1)


class _Search:
    """Newton steps on the logarithm of the sum, kept inside a bracket that shrinks."""

    def __init__(self, logits: Tensor, size: Tensor, low: Tensor, high: Tensor, threshold: Tensor) -> None:
        self.logits, self.size, self.low, self.high, self.threshold = logits, size, low, high, threshold

    def only(self, rows: Tensor) -> _Search:
        """The search of some rows."""
        parts = (self.logits, self.size, self.low, self.high, self.threshold)
        return _Search(*(part[rows] for part in parts))

    def step(self) -> Tensor:
        """Improve the thresholds once; which rows are done, (rows,)."""
        excess, slope = self._excess()
        above = excess > 0
        self.low = torch.where(above, self.low, self.threshold)
        self.high = torch.where(above, self.threshold, self.high)
        newton = self.threshold - torch.log1p(excess / self.size) * (self.size + excess) / slope
        # False for NaN as well.
        inside = (newton >= self.low) & (newton <= self.high)
        following = torch.where(inside, newton, (self.low + self.high) / 2)
        precision = torch.finfo(self.logits.dtype)
        # The error after a Newton step is below its square.
        near = inside & ((following - self.threshold).abs() <= precision.eps**0.5)
        # Inside a gap so wide that every slope underflows, the first guess is exact.
        saturated = (slope < precision.tiny / precision.eps) & (excess.abs() < 0.5)
        stuck = self.high - self.low <= 4 * precision.eps * self.threshold.abs()
        self.threshold = torch.where(saturated, self.threshold, following)
        done: Tensor = (near | saturated | stuck).squeeze(1)
        return done

    def _excess(self) -> tuple[Tensor, Tensor]:
        """``sum sigmoid - k`` without cancellation, and its derivative, both (rows, 1)."""
        shifted = self.logits + self.threshold  # (rows, columns)
        sign = shifted.sign()
        tail = shifted.abs_().neg_().sigmoid_()  # the distance of each sigmoid from its nearer end, 0 or 1
        ones = (sign.sum(1, keepdim=True) + sign.shape[1]) / 2
        excess = (ones - self.size) - torch.linalg.vecdot(tail, sign)[:, None]
        slope = tail.sum(1, keepdim=True) - torch.linalg.vecdot(tail, tail)[:, None]
        return excess, slope


def _slopes_(shifted: Tensor) -> Tensor:
    """``z (1 - z)`` of ``z = sigmoid(shifted)`` in place, each row relative to about its largest."""
    shifted.abs_().neg_()
    peak = shifted.amax(1, keepdim=True)  # (rows, 1)
    relative = shifted.sub_(peak).exp_()
    relative.div_((relative * peak.exp()).add_(1).square_())
    return relative

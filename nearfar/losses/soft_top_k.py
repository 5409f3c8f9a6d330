"""SoftTop-k: https://arxiv.org/abs/2310.10636 (Gupta et al., ICLR 2024).

Asks that the positives be among the k best documents, not that each be the best.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import RowGradient, RowValues, Space, Tile, segment_sum, softplus

_NEVER = -1e30  # the logit of an ignored document: finite, so that no difference of two is NaN
_MOST_STEPS = 100  # a bisection alone would need fewer
_ROUGH_STEPS = 4  # on two moments: enough to come near, and cheap
_FEWEST_MEMBERS = 8  # of a group, below which looking for the best groups first does not pay


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
            each query's number of positives, for which the dense path sorts every row.
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
        best, places = self._best(scores.detach(), k)
        kth = best.gather(1, k[:, None] - 1)  # relative to it, logits are exact near the threshold
        logits = (scores - kth) * (self.alpha * self.scale)  # (rows, columns)
        threshold = _Threshold.apply(logits, places, k)  # type: ignore[no-untyped-call]
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
        s[non_negatives] = _NEVER
        s[pairs] = own
        if not counted.all():
            s[~counted] = 0.0
        best, places = best_of_rows(s, int(k.max()) + 1)
        kth = best.gather(1, k[:, None] - 1)  # (rows, 1)
        sharpness = self.alpha * self.scale
        sum_of = _SigmoidSum(s.sub_(kth).mul_(sharpness), places, k, tile.space)
        threshold = sum_of.solve()
        own = (own - kth[rows, 0]) * sharpness + threshold[rows, 0]
        values = segment_sum(share * softplus(-own), rows, count)
        slope = share * torch.sigmoid(-own) * sharpness  # (P,)
        gradient = sum_of.slopes_(threshold, segment_sum(slope, rows, count))  # (rows, columns)
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
        """At least the k + 1 best scores of each row in descending order, and their columns, (rows, at least k + 1)."""
        if self.k == "positives":
            best, places = scores.sort(1, descending=True)  # a width that only the data know does not compile
            return best, places
        return best_of_rows(scores, int(self.k) + 1)


class _Threshold(torch.autograd.Function):
    """The threshold with its implicit gradient, of which autograd takes further derivatives."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor, k: Tensor) -> Tensor:
        threshold: Tensor = soft_top_k_threshold(logits, places, k)
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
def soft_top_k_threshold(logits: Tensor, places: Tensor, k: Tensor) -> Tensor:
    """Solve ``sum_j sigmoid(logits_j + t) = k`` for t in every row.

    Args:
        logits: (rows, columns), shifted so that the k-th best of each row is 0.
        places: columns of the best of each row in descending order, (rows, at least k + 1).
        k: integers (rows,), each above 0 and below the number of columns.

    Returns:
        t, (rows, 1).
    """
    return _SigmoidSum(logits.clone(), places, k, Space()).solve()


@soft_top_k_threshold.register_fake
def _(logits: Tensor, places: Tensor, k: Tensor) -> Tensor:
    return logits.new_empty(len(logits), 1)


class _SigmoidSum:
    """``sum_j sigmoid(logits_j + t)`` of each row, as a function of t. Overwrites the logits.

    The best of a row are kept apart and exactly. All others lie below the (k + 1)-th best, so their exponentials
    relative to it are at most 1 and are taken once: no step towards the threshold takes another.
    """

    def __init__(self, logits: Tensor, places: Tensor, k: Tensor, space: Space) -> None:
        self.places, self.space = places, space
        self.best = logits.gather(1, places)  # (rows, at least k + 1), descending
        self.size = k.to(logits.dtype)[:, None]  # (rows, 1)
        self.above = torch.arange(places.shape[1], device=k.device) < k[:, None]  # (rows, at least k + 1)
        self.anchor = self.best.gather(1, k[:, None])  # (rows, 1), the (k + 1)-th best
        self.powers = logits.scatter_(1, places, -torch.inf).sub_(self.anchor).exp_()  # (rows, columns)

    def solve(self) -> Tensor:
        """The thresholds (rows, 1) at which each row sums to k."""
        sums = self.powers.sum(1, keepdim=True)  # (rows, 1)
        squares = torch.square(self.powers, out=self.space("shares", self.powers)).sum(1, keepdim=True)
        rest = self.best.masked_fill(self.above, -torch.inf).logsumexp(1, keepdim=True)
        rest = torch.logaddexp(rest, sums.log() + self.anchor)  # (rows, 1), of all but the best k
        bounds = -torch.logaddexp(rest, torch.zeros_like(rest)), self.size.log() - self.anchor
        # Exact where a wide gap separates the best k from the rest: what these lack is what those have.
        lack = (-self.best).masked_fill_(~self.above, -torch.inf).logsumexp(1, keepdim=True)
        guess = ((lack - rest) / 2).clamp_(*bounds)

        # First with two moments of the powers in place of all of them, which takes no pass over the tile.
        search = _Search(self.size, *bounds, guess)
        mean = squares / sums.clamp(min=torch.finfo(sums.dtype).tiny)
        for _ in range(_ROUGH_STEPS):
            odds = self._odds(search.threshold)  # (rows, 1)
            share = sums / (odds + mean)
            search.step(*self._with_best(search.threshold, share, share * odds / (odds + mean)))

        found = torch.empty_like(guess)
        active, rows = torch.arange(len(found), device=found.device), self
        search = _Search(self.size, *bounds, search.threshold)
        for _ in range(_MOST_STEPS):
            done = search.step(*rows._excess(search.threshold))
            found[active] = search.threshold
            if bool(done.all()):
                break
            if bool(done.any()):
                active, rows, search = active[~done], rows._only(~done), search.only(~done)
        return found

    def _odds(self, threshold: Tensor, largest: float | None = None) -> Tensor:
        """The odds against the (k + 1)-th best at the threshold, (rows, 1), finite and at most ``largest``."""
        largest = largest or torch.finfo(threshold.dtype).max / 4
        return (-self.anchor - threshold).clamp_(max=math.log(largest)).exp_()

    def _excess(self, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """``sum sigmoid - k`` without cancellation, and its derivative, both (rows, 1)."""
        shares = torch.add(self.powers, self._odds(threshold), out=self.space("shares", self.powers))
        shares = torch.div(self.powers, shares, out=shares)  # (rows, columns), the sigmoids
        total = shares.sum(1, keepdim=True)
        return self._with_best(threshold, total, total - shares.square_().sum(1, keepdim=True))

    def _with_best(self, threshold: Tensor, total: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the sum and slope of all others."""
        shifted = self.best + threshold  # (rows, at least k + 1)
        own = torch.where(self.above, -shifted, shifted).sigmoid()
        excess = total + torch.where(self.above, -own, own).sum(1, keepdim=True)
        return excess, slope + (own * (1 - own)).sum(1, keepdim=True)

    def _only(self, rows: Tensor) -> _SigmoidSum:
        """The sums of some rows."""
        part = copy(self)
        for name in ("best", "size", "above", "anchor", "powers"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    def slopes_(self, threshold: Tensor, totals: Tensor) -> Tensor:
        """``z (1 - z)`` of every sigmoid z, scaled so that the rows sum to ``totals`` (rows,). Overwrites the powers.

        Relative to about the largest, since with a wide gap at the threshold all underflow.
        """
        distance = (self.best + threshold).abs_()  # (rows, at least k + 1)
        nearest = distance.amin(1, keepdim=True)  # (rows, 1)
        own = (nearest - distance).exp_().mul_((-distance).sigmoid_().sub_(1).square_())
        odds = self._odds(threshold, 8 / torch.finfo(threshold.dtype).eps)  # beyond, slopes are linear in the powers
        divisor = torch.add(self.powers, odds, out=self.space("shares", self.powers)).square_()
        slopes = self.powers.div_(divisor)  # (rows, columns)
        weight = odds.square_().mul_((self.anchor + threshold + nearest).exp_())
        scale = totals[:, None] / (weight * slopes.sum(1, keepdim=True) + own.sum(1, keepdim=True))
        return slopes.mul_(weight * scale).scatter_(1, self.places, own * scale)


class _Search:
    """Newton steps on the logarithm of a growing sum, kept inside a bracket that shrinks."""

    def __init__(self, size: Tensor, low: Tensor, high: Tensor, threshold: Tensor) -> None:
        self.size, self.low, self.high, self.threshold = size, low, high, threshold

    def only(self, rows: Tensor) -> _Search:
        """The search of some rows."""
        return _Search(self.size[rows], self.low[rows], self.high[rows], self.threshold[rows])

    def step(self, excess: Tensor, slope: Tensor) -> Tensor:
        """Improve the thresholds once, given what the sum has too much there; which rows are done, (rows,)."""
        above = excess > 0
        self.low = torch.where(above, self.low, self.threshold)
        self.high = torch.where(above, self.threshold, self.high)
        newton = self.threshold - torch.log1p(excess / self.size) * (self.size + excess) / slope
        # False for NaN as well.
        inside = (newton >= self.low) & (newton <= self.high)
        following = torch.where(inside, newton, (self.low + self.high) / 2)
        precision = torch.finfo(excess.dtype)
        # The error after a Newton step is below its square.
        near = inside & ((following - self.threshold).abs() <= 4 * precision.eps**0.5)
        # Inside a gap so wide that every slope underflows, the first guess is exact.
        saturated = (slope < precision.tiny / precision.eps) & (excess.abs() < 0.5)
        stuck = self.high - self.low <= 4 * precision.eps * self.threshold.abs()
        self.threshold = torch.where(saturated, self.threshold, following)
        done: Tensor = (near | saturated | stuck).squeeze(1)
        return done


def best_of_rows(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The best scores of each row in descending order and their columns, as ``topk``, which reads a row several times.

    The best of a row are among the members of the groups whose own best are best.
    """
    columns = scores.shape[1]
    groups = math.isqrt(columns * number)  # as many as there are members to look at in the best
    size = columns // groups
    if size < _FEWEST_MEMBERS:
        return scores.topk(number, dim=1)
    grouped = scores[:, : size * groups].reshape(-1, size, groups)  # (rows, size, groups)
    best_groups = grouped.amax(1).topk(number, dim=1, sorted=False).indices  # (rows, number)
    members = torch.arange(0, size * groups, groups, device=scores.device)[:, None] + best_groups[:, None]
    rest = torch.arange(size * groups, columns, device=scores.device).expand(len(scores), -1)
    places = torch.cat((members.flatten(1), rest), 1)  # (rows, size * number + rest)
    best, order = scores.gather(1, places).topk(number, dim=1)
    return best, places.gather(1, order)

"""Mann-Whitney loss: https://arxiv.org/abs/2510.00137 (Sheikholeslami et al., 2025).

Every positive of the batch against every negative of the batch, whichever query they belong to: one threshold for all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nearfar.losses.checks import check_choice
from nearfar.losses.contract import Capabilities, Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import Comparison, LabelTarget, RowGradient, RowValues, Tile, row_local, softplus
from nearfar.losses.engine.distributed import shards

Method = Literal["auto", "exact", "table"]
_MOST_EXACT = 512  # positives, up to which "auto" compares each of them with each negative
# Linear interpolation of softplus errs by at most step^2 / 32, of the sigmoid by step^2 / 83; both sides are binned.
_KNOTS = 320  # per unit of similarity / temperature: 6.2e-7 and 2.4e-7


class MannWhitneyLoss(QueryDocumentLoss):
    r"""Logistic bound on the area over the ROC curve of the batch, pooled over queries.

    .. math::
        L = \frac1{|P|\,|N|} \sum_{p \in P} \sum_{n \in N} w_p \operatorname{softplus}\bigl(s_n - s_p\bigr), \qquad
        s = \cos / \text{temperature}

    where P are all positive and N all negative pairs of the batch. w is the graded relevance (1 for plain positives).
    At the default temperature only inverted or nearly tied pairs have a gradient, and a repeated document left
    among the negatives counts against every positive: name repetitions with ``document_ids`` or ``mask``.

    Up to 512 positives every positive meets every negative. Above, their mean is a function of the negative's score
    alone, tabulated at 320 points per temperature from the binned positives: the loss (a mean over comparisons) errs by
    less than 7e-7 and its slope on a similarity by less than 3e-7 of the largest possible one, beside rounding.

    Args:
        temperature: divides the cosine; 0.01 (paper).
        scale: multiplies the cosine, instead of ``temperature``.
        normalise: "pairs" divides by the number of comparisons, which makes the loss independent of the batch size;
            "positives" divides by the number of positives only (paper).
        method: "exact" (time grows with positives times negatives), "table", or "auto": exact up to 512 positives, and
            on the dense path.
        false_negative_margin: see ``QueryDocumentLoss``; None (off).
        reduction: "mean" only: a comparison belongs to two queries.
        path: "streamed" or "dense". The dense exact path holds every comparison; with the table it has no second
            derivative.
        gather_across_devices: see ``Loss``; False.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar.

    Raises:
        InputError: for ``reduction="none"``, both ``temperature`` and ``scale``, grades outside [0, 1], or misfitting
            shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import MannWhitneyLoss
        >>> queries, documents = torch.eye(3), torch.eye(3)
        >>> round(MannWhitneyLoss(temperature=1)(queries, documents).item(), 4)
        0.3133

    Source: equation 3 of the paper with the temperature of its lemma 2; no official code was found. The mean over
    comparisons and the table are ours.
    """

    paper = "https://arxiv.org/abs/2510.00137"
    capabilities = Capabilities(
        inputs="documents", unreduced=False, reference_set=False, mined_pairs=False, multi_label=False
    )
    closed_form_names = ("positives", "values")
    citation = """@misc{sheikholeslami2025optimizing,
    title = {Optimizing What Matters: {AUC}-Driven Learning for Robust Neural Retrieval},
    author = {Sheikholeslami, Nima and Hosseini, Erfan and Bechard, Patrice and Daruru, Srivatsava and Rajeswar, Sai},
    year = {2025},
    eprint = {2510.00137},
    archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        temperature: float | None = None,
        *,
        scale: float | None = None,
        normalise: Literal["pairs", "positives"] = "pairs",
        method: Method = "auto",
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if temperature is None and scale is None:
            temperature = 0.01
        super().__init__(
            temperature,
            scale,
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        self.normalise = check_choice("normalise", normalise, ("pairs", "positives"))
        self.method = check_choice("method", method, ("auto", "exact", "table"))
        self._kernels: tuple[Tensor, Tensor] | None = None

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"normalise": self.normalise, "method": self.method, **super().settings()}

    def compute(self, comparison: Comparison) -> Tensor:
        """Mean over the comparisons, or over the positives."""
        positives, grades = _positives(comparison)
        if comparison.shard is not None:
            owners = shards({"positives": positives})["positives"]
            positives, grades = owners.gather(positives), owners.gather(grades)
        number = grades.new_tensor(0.0).add((grades > 0).sum()).clamp(min=1)
        # On the dense path nothing may depend on a number that only the data know: it compiles.
        if self.method == "exact" or (
            self.method == "auto" and (self.path == "dense" or len(positives) <= _MOST_EXACT)
        ):
            parameters = {"positives": positives, "shares": grades / number}
            rows, closed_form = self.exact_rows, self.exact_rows_with_gradient
        else:
            kernels = self._kernels_on(positives.device)
            values, slopes = _Table.apply(positives, grades / number, self.scale, *kernels)  # type: ignore[no-untyped-call]
            parameters = {"values": values, "slopes": slopes}
            rows, closed_form = self.table_rows, self.table_rows_with_gradient
        if self.path == "streamed":  # without a gradient too, the closed form is the one that needs little memory

            def rows(tile: Tile) -> RowValues:
                values, negatives, *_ = closed_form(tile)
                return values, negatives

        comparison = replace(comparison, parameters=parameters)
        total, count = row_local(comparison, rows, closed_form, self.path, self.closed_form_names)
        return total / count.clamp(min=1) if self.normalise == "pairs" else total

    # Every positive with every negative

    def exact_rows(self, tile: Tile) -> RowValues:
        """Sum over a query's negatives of the mean over all positives, and the number of negatives."""
        negative = self.negatives(tile)
        gaps = (tile.similarity[..., None] - tile.parameters["positives"]) * self.scale  # (rows, columns, P)
        # softplus; the engine's does not compile for a number of positives that only the data know.
        losses = torch.logaddexp(gaps, torch.zeros((), dtype=gaps.dtype, device=gaps.device))
        means = (losses * tile.parameters["shares"]).sum(2).masked_fill(~negative, 0.0)  # (rows, columns)
        return means.sum(1), negative.sum(1)

    def exact_rows_with_gradient(self, tile: Tile) -> RowGradient:
        """The same in closed form, a positive at a time."""
        s, negative = tile.similarity, self.negatives(tile)
        positives, shares = tile.parameters["positives"], tile.parameters["shares"]
        scores = (s * self.scale).masked_fill_(~negative, -torch.inf)  # (rows, columns)
        slope, values = torch.zeros_like(s), s.new_zeros(len(s))
        on_positives = torch.empty_like(positives)
        lead = torch.empty_like(s)
        for i, (positive, share) in enumerate(zip(positives * self.scale, shares, strict=True)):
            torch.sub(positive, scores, out=lead)
            values.addcmul_(F.logsigmoid(lead).sum(1), share, value=-1)
            pull = lead.neg_().sigmoid_().mul_(share)  # (rows, columns)
            on_positives[i] = pull.sum()
            slope.add_(pull)
        found = {"positives": on_positives.mul_(-self.scale)}
        return values, negative.sum(1), slope.mul_(self.scale), found

    # By table

    def _kernels_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Transforms of softplus and sigmoid, which only depend on the scale; kept from call to call."""
        if self._kernels is None or self._kernels[0].device != device:
            lags = _lags(_size(self.scale), device)
            self._kernels = _rfft(softplus(lags), len(lags)), _rfft(lags.sigmoid(), len(lags))
        return self._kernels

    def table_rows(self, tile: Tile) -> RowValues:
        """The same from the table."""
        s, negative = tile.similarity, self.negatives(tile)
        index, between = _position(s.detach(), self.scale)
        means = _interpolate(tile.parameters["values"].to(s.dtype), index, between)
        slopes = _interpolate(tile.parameters["slopes"], index, between)
        # The derivative of an interpolation is a staircase; the table of slopes is not.
        means = means + (s - s.detach()) * slopes
        return means.masked_fill(~negative, 0.0).sum(1), negative.sum(1)

    def table_rows_with_gradient(self, tile: Tile) -> RowGradient:
        """The same in closed form."""
        s, space, excluded, number = tile.similarity, tile.space, *self._excluded(tile)
        values, slopes = tile.parameters["values"], tile.parameters["slopes"]
        between = _place(s, self.scale, space("between", s))  # (rows, columns)
        index = space("index", s, torch.int64).copy_(between)
        between.frac_()
        index[excluded] = nowhere = len(slopes) - 1  # the last knot, below which no score lies
        last = slopes.new_zeros(1)
        slope = torch.index_select(torch.cat((slopes[:-1], last)), 0, index.view(-1), out=space("slope", s).view(-1))
        rise = torch.index_select(torch.cat((slopes.diff(), last)), 0, index.view(-1), out=space("rise", s).view(-1))
        slope.addcmul_(rise, between.view(-1))
        ones = space("rise", s).fill_(1.0)
        bins = _histogram(index, ones, between, nowhere)
        # The loss is linear in the table, so the bins have the tile's sum; rows only ever enter by their sum.
        total = torch.dot(bins.to(values.dtype), values)
        shares = number * (total / number.sum().clamp(min=1))
        return shares, number, slope.view_as(s), {"values": bins}

    def _excluded(self, tile: Tile) -> tuple[tuple[Tensor, ...], Tensor]:
        """Pairs that are no negatives, and the number of negatives of each row."""
        if self._masks_by_score:
            negative = self.negatives(tile)
            return (~negative).nonzero(as_tuple=True), negative.sum(1)
        excluded = tile.target.non_negative_pairs()
        rows, columns = tile.similarity.shape
        return excluded, columns - torch.bincount(excluded[0], minlength=rows)


def _positives(comparison: Comparison) -> tuple[Tensor, Tensor]:
    """Similarities of all positive pairs, under autograd, and their grades, both (P,)."""
    rows, columns, target = comparison.rows, comparison.columns, comparison.target
    if isinstance(target, LabelTarget):  # document i answers query i
        own = (rows * columns[target.row_labels]).sum(1)
        return own, torch.ones_like(own)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in comparison.row_blocks():
        tile = target.tile(block, slice(None))
        pairs = tile.positive_pairs()
        found.append((pairs[0] + block.start, pairs[1], tile.positive_weights(pairs, rows.dtype)))
    if not found:
        return rows[:0].sum(1), rows.new_zeros(0)  # connected: other processes may have some
    row, column, grades = (torch.cat(parts) for parts in zip(*found, strict=True))
    return (rows[row] * columns[column]).sum(1), grades


def _position(scores: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The knot below each score, and how far it is on the way to the next."""
    place = _place(scores, scale)
    index = place.long()
    return index, place.frac_()


def _place(scores: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    knots = scale * _KNOTS  # per unit of cosine
    return torch.add(scores.new_tensor(knots), scores, alpha=knots, out=out).clamp_(0, _size(scale) - 1.5)


def _size(scale: float) -> int:
    """Knots from a cosine of -1 to beyond 1."""
    return math.ceil(2 * scale * _KNOTS) + 2


def _interpolate(table: Tensor, index: Tensor, between: Tensor) -> Tensor:
    flat = index.flatten()
    below = table.index_select(0, flat).view_as(between)
    rise = (table[1:] - table[:-1]).index_select(0, flat).view_as(between)
    return torch.addcmul(below, rise, between)


def _histogram(index: Tensor, weight: Tensor, above: Tensor, nowhere: int) -> Tensor:
    """Each score's weight, shared between the knot of its index and the next, which gets ``above``; (nowhere + 1,).

    What has the index ``nowhere`` is left out.
    """
    flat = index.flatten()
    bins = weight.new_zeros(nowhere + 1).scatter_add_(0, flat, weight.flatten())
    shares = weight.new_zeros(nowhere + 1).scatter_add_(0, flat, above.flatten())
    bins[nowhere] = 0.0
    bins[:-1] -= shares[:-1]
    bins[1:] += shares[:-1]
    return bins


class _Table(torch.autograd.Function):
    """Mean over the positives of softplus, and its slope on a cosine, at every knot.

    By convolution of the binned positives with softplus and sigmoid, whose transforms are given.
    """

    @staticmethod
    def forward(
        ctx: Any, positives: Tensor, shares: Tensor, scale: float, softplus_kernel: Tensor, sigmoid_kernel: Tensor
    ) -> tuple[Tensor, Tensor]:
        size, exact = _size(scale), positives.double()
        index, between = _position(exact, scale)
        shares = shares.double()  # (P,)
        bins = _histogram(index, shares, shares * between, size - 1)
        transform = _transform(bins, sigmoid_kernel)
        values = _inverse(transform * softplus_kernel, size)
        slopes = _inverse(transform * sigmoid_kernel, size).mul_(scale).to(positives.dtype)
        ctx.save_for_backward(exact, shares, sigmoid_kernel)
        ctx.scale = scale
        ctx.mark_non_differentiable(slopes)
        return values, slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        positives, shares, kernel = ctx.saved_tensors
        index, between = _position(positives, ctx.scale)
        # The gradient on the table is the binned negatives, and sigmoid(-x) = 1 - sigmoid(x).
        above = gradient.sum() - _inverse(_transform(gradient, kernel) * kernel, len(gradient))
        return -_interpolate(above, index, between) * shares * ctx.scale, None, None, None, None


def _lags(size: int, device: torch.device) -> Tensor:
    """Distances of knots in the order of a circular convolution: 0, 1, ..., then the negative ones up to -1."""
    length = 1 << (2 * size - 1).bit_length()  # a power of two transforms fastest
    steps = torch.arange(length, device=device)
    return torch.where(steps < size, steps, steps - length).double() / _KNOTS


# ``sum_l bins[l] kernel[k - l]`` for every knot k is the inverse of the product of both transforms.


def _transform(bins: Tensor, kernel: Tensor) -> Tensor:
    """As long as the transform of a kernel."""
    return _rfft(bins, 2 * (len(kernel) - 1))


def _rfft(values: Tensor, length: int) -> Tensor:
    if values.device.type == "cpu":  # NumPy takes a quarter of torch's time
        return torch.from_numpy(np.fft.rfft(values.numpy(), length))
    result: Tensor = torch.fft.rfft(values, length)
    return result


def _inverse(product: Tensor, size: int) -> Tensor:
    length = 2 * (len(product) - 1)
    if product.device.type == "cpu":
        return torch.from_numpy(np.fft.irfft(product.numpy(), length)[:size])
    result: Tensor = torch.fft.irfft(product, length)[:size]
    return result

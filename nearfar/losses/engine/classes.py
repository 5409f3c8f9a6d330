"""Form 2 for class weights: a batch against very many classes, in three matrix products and without a logits matrix.

The loss of a margin head needs two numbers per sample: its similarity with its own class, and the log-sum-exp of the
logits of all others. The first pass finds them tile by tile. The tiles of similarities are left where the gradient of
the weights will be, which is not needed before the second pass turns each tile into its part of that gradient. So the
similarities are computed once and cost no memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.losses.engine.comparison import Space
from nearfar.losses.engine.precision import full_precision, refuse_second_derivative
from nearfar.losses.engine.reductions import masked_logsumexp

# Measured on 256 x 100,000 x 512: 2 to 8 MiB are equal within noise.
_TILE_BYTES = 4 * 2**20
_FEWEST_CLASSES, _MOST_CLASSES = 256, 4096
_TINY_NORM = 1e-12  # as torch.nn.functional.normalize
_LOWEST = -1e30  # stands for -inf where a difference must stay defined


class Logit(Protocol):
    """What makes logits of similarities, elementwise."""

    def logits(self, similarity: Tensor) -> Tensor:
        """Logits, under autograd."""
        ...

    def logits_and_slope(self, similarity: Tensor, want_slope: bool, space: Space) -> tuple[Tensor, Tensor | None]:
        """The same in buffers of the space, and their derivative if wanted."""
        ...


class ClassStatistics(NamedTuple):
    """What the loss of a margin head needs of a sample.

    Attributes:
        own: similarity with its own class, (B,); 0 where the label is -1.
        rivals: log-sum-exp of the logits of all other classes, (B,); ``-inf`` where there is none.
    """

    own: Tensor
    rivals: Tensor


def class_statistics(
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    logit: Logit | None = None,
    sub_centers: int = 1,
    path: Literal["streamed", "dense"] = "streamed",
) -> ClassStatistics:
    """Compare a batch with all classes, whose weights count with unit length.

    Args:
        rows: (B, d), unit length, or scaled by what multiplies the cosine.
        weight: (C * sub_centers, E) with E >= d, any length; only the first d dimensions take part.
        labels: integers (B,) in [0, C), or -1 for a sample without a class.
        logit: what makes logits of similarities; None when they are the logits.
        sub_centers: rows of ``weight`` per class; a class is as similar as its nearest one.
        path: "streamed" holds no matrix of logits; "dense" does, and can be differentiated twice.
    """
    with full_precision(rows.device):
        # Never re-cast the parameter itself: a cast under autograd leaves it as it is.
        dtype = torch.promote_types(torch.promote_types(rows.dtype, weight.dtype), torch.float32)
        rows, weight = rows.to(dtype), weight.to(dtype)
        if path == "dense":
            return _dense(rows, weight, labels, logit, sub_centers)
        keep = torch.is_grad_enabled() and weight.requires_grad and len(rows) <= weight.shape[1]
        program = _Program(logit, sub_centers, keep)
        own, rivals = _TwoPass.apply(program, rows, weight, labels)  # type: ignore[no-untyped-call]
        return ClassStatistics(own, rivals)


def _dense(rows: Tensor, weight: Tensor, labels: Tensor, logit: Logit | None, sub_centers: int) -> ClassStatistics:
    similarity = rows @ F.normalize(weight[:, : rows.shape[1]]).T  # (B, C * sub_centers)
    similarity = _by_class(similarity, sub_centers).amax(2)  # (B, C)
    known = labels >= 0
    own = similarity.gather(1, labels.clamp(min=0)[:, None]).squeeze(1).masked_fill(~known, 0.0)  # (B,)
    others = torch.arange(similarity.shape[1], device=labels.device) != labels[:, None]  # (B, C)
    logits = similarity if logit is None else logit.logits(similarity)
    return ClassStatistics(own, masked_logsumexp(logits, others))


def _by_class(similarity: Tensor, sub_centers: int) -> Tensor:
    rows, columns = similarity.shape
    return similarity.view(rows, columns // sub_centers, sub_centers)


@dataclass(frozen=True)
class _Program:
    logit: Logit | None
    sub_centers: int
    keep: bool  # leave the tiles in the buffer of the gradient


class _TwoPass(torch.autograd.Function):
    """First pass in forward, second pass in backward."""

    @staticmethod
    def forward(ctx: Any, program: _Program, rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        buffer = torch.empty_like(weight, memory_format=torch.contiguous_format) if program.keep else None
        norms = torch.linalg.vector_norm(weight[:, : rows.shape[1]], dim=1)  # (C * sub_centers,)
        inverse_norm = norms.clamp_min_(_TINY_NORM).reciprocal_()
        walk = _Walk(program, rows, weight, labels, inverse_norm)
        own = rows.new_zeros(len(rows))
        peak, total = rows.new_full((len(rows),), _LOWEST), rows.new_zeros(len(rows), dtype=torch.float64)
        for block in walk.blocks():
            tile = walk.tile(block, walk.compute(block, buffer))
            own = torch.where(tile.inside, tile.own, own)
            new_peak = torch.maximum(peak, tile.logits.amax(1))
            total *= (peak - new_peak).exp()
            total += torch.sub(tile.logits, new_peak[:, None], out=walk.space("work", tile.logits)).exp_().sum(1)
            peak = new_peak
            tile.show_own()
        rivals = total.log().add_(peak).to(rows.dtype)
        ctx.program, ctx.buffer = program, buffer
        ctx.save_for_backward(rows, weight, labels, inverse_norm, rivals)
        return own, rivals

    @staticmethod
    def backward(ctx: Any, grad_own: Tensor, grad_rivals: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        rows, weight, labels, inverse_norm, rivals = ctx.saved_tensors
        # The buffer becomes the gradient, so it serves once; a second backward computes the tiles again.
        kept, ctx.buffer = ctx.buffer, None
        _, want_rows, want_weight, _ = ctx.needs_input_grad
        grad_rows = torch.zeros_like(rows) if want_rows else None
        grad_weight = None
        if want_weight:
            grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if kept is None else kept
        walk = _Walk(ctx.program, rows, weight, labels, inverse_norm)
        finite_rivals = rivals.clamp(min=_LOWEST)
        with full_precision(rows.device):
            for block in walk.blocks():
                similarity = walk.compute(block, None) if kept is None else walk.kept(block, kept)
                gradient = walk.gradient(walk.tile(block, similarity, True), finite_rivals, grad_own, grad_rivals)
                walk.pull(block, similarity, gradient, grad_rows, grad_weight)
        return None, grad_rows, grad_weight, None


class _Walk:
    """One pass over blocks of classes."""

    def __init__(self, program: _Program, rows: Tensor, weight: Tensor, labels: Tensor, inverse_norm: Tensor) -> None:
        self.program, self.rows, self.labels, self.inverse_norm = program, rows, labels, inverse_norm
        self.columns = weight[:, : rows.shape[1]]  # (C * sub_centers, d)
        self.each_row = torch.arange(len(rows), device=rows.device)
        per_class = max(1, len(rows)) * program.sub_centers * rows.element_size()
        self.width = min(max(_TILE_BYTES // per_class, _FEWEST_CLASSES), _MOST_CLASSES)
        self.space = Space()

    def blocks(self) -> Iterator[slice]:
        """Blocks of classes."""
        count = len(self.columns) // self.program.sub_centers
        return (slice(start, min(start + self.width, count)) for start in range(0, count, self.width))

    def compute(self, block: slice, buffer: Tensor | None) -> Tensor:
        """Similarities with the weights of a block, (B, columns); in ``buffer`` if there is one."""
        part = self._columns_of(block)
        size = (len(self.rows), part.stop - part.start)
        out = self.space("similarity", self.rows, shape=size) if buffer is None else self.kept(block, buffer)
        return torch.mm(self.rows, self.columns[part].T, out=out).mul_(self.inverse_norm[part])

    def kept(self, block: slice, buffer: Tensor) -> Tensor:
        """Where the similarities of a block lie in ``buffer``: at the start of that block's rows."""
        part = self._columns_of(block)
        count = part.stop - part.start
        return buffer[part].view(-1)[: len(self.rows) * count].view(len(self.rows), count)

    def tile(self, block: slice, similarity: Tensor, want_slope: bool = False) -> _ClassTile:
        """The block by classes, with each sample's own class hidden from its logits."""
        best, which = similarity, None
        if self.program.sub_centers > 1:
            best, which = _by_class(similarity, self.program.sub_centers).max(2)  # (B, classes)
        logits, slope = best, None
        if self.program.logit is not None:
            logits, slope = self.program.logit.logits_and_slope(best, want_slope, self.space)
        # Every row is indexed, in the block or not: choosing rows would make an accelerator wait for the count.
        shifted = self.labels - block.start
        inside = (shifted >= 0) & (shifted < best.shape[1])
        return _ClassTile(best, which, logits, slope, (self.each_row, shifted.clamp(0, best.shape[1] - 1)), inside)

    def gradient(self, tile: _ClassTile, rivals: Tensor, grad_own: Tensor, grad_rivals: Tensor) -> Tensor:
        """Gradient on the similarities of a block, (B, columns)."""
        out = torch.sub(tile.logits, rivals[:, None], out=self.space("work", tile.logits))
        gradient = out.exp_().mul_(grad_rivals[:, None])  # (B, classes)
        tile.show_own()
        if tile.slope is not None:
            gradient.mul_(tile.slope)
        gradient[tile.index] += torch.where(tile.inside, grad_own, 0.0)
        if tile.which is None:
            return gradient
        spread = gradient.new_zeros(*gradient.shape, self.program.sub_centers)
        return spread.scatter_(2, tile.which[..., None], gradient[..., None]).flatten(1)  # (B, columns)

    def pull(
        self, block: slice, similarity: Tensor, gradient: Tensor, grad_rows: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        """Send the gradient of a block to rows and weights. Overwrites both tiles."""
        part = self._columns_of(block)
        columns, inverse_norm = self.columns[part], self.inverse_norm[part]
        # d(w / |w|) loses the part along w: per column, how much of the gradient points that way.
        radial = similarity.mul_(gradient).sum(0).mul_(inverse_norm.square())  # (columns,)
        gradient.mul_(inverse_norm)
        if grad_rows is not None:
            grad_rows.addmm_(gradient, columns)  # (B, d)
        if grad_weight is not None:
            width = self.rows.shape[1]
            out = grad_weight[part, :width]
            torch.mm(gradient.T, self.rows, out=out).addcmul_(columns, radial[:, None], value=-1)  # (columns, d)
            grad_weight[part, width:] = 0

    def _columns_of(self, block: slice) -> slice:
        return slice(block.start * self.program.sub_centers, block.stop * self.program.sub_centers)


class _ClassTile:
    """A block of classes; the logit of each sample's own class is ``-inf`` until ``show_own``.

    Args:
        best: similarity with each class, (B, classes).
        which: the nearest sub-centre, (B, classes), or None when a class has only one.
        logits: (B, classes); may be ``best`` itself.
        slope: derivative of the logits, (B, classes), or None when they are the similarities.
        index: rows and own columns, (B,) each.
        inside: whether the own class lies in this block, (B,).
    """

    def __init__(
        self,
        best: Tensor,
        which: Tensor | None,
        logits: Tensor,
        slope: Tensor | None,
        index: tuple[Tensor, Tensor],
        inside: Tensor,
    ) -> None:
        self.which, self.logits, self.slope, self.index, self.inside = which, logits, slope, index, inside
        self.own = best[index]  # (B,)
        self._own_logit = logits[index]  # (B,)
        logits[index] = self._own_logit.masked_fill(inside, -torch.inf)

    def show_own(self) -> None:
        """Put the hidden logits back."""
        self.logits[self.index] = self._own_logit

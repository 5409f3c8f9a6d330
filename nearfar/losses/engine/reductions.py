"""Reductions that stay finite, in value and gradient, when a row selects nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softplus(values: Tensor) -> Tensor:
    """``log(1 + e^x)`` to full precision: ``torch.nn.functional.softplus`` turns linear at 20, 1e-10 too soon."""
    return -F.logsigmoid(-values)


def masked_logsumexp(values: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """Log-sum-exp of the entries that ``mask`` selects; ``-inf`` with zero gradient where it selects none.

    ``torch.logsumexp`` of an all ``-inf`` row has a NaN gradient, which a later mask cannot remove.

    Args:
        values: any shape, finite where selected.
        mask: boolean, broadcastable to ``values``.
        dim: the dimension to reduce.
    """
    neg_inf = -torch.inf
    masked = values.masked_fill(~mask, neg_inf)
    peak = masked.detach().amax(dim, keepdim=True)
    peak = peak.masked_fill(peak == neg_inf, 0.0)
    total = (masked - peak).exp().sum(dim)
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + peak.squeeze(dim)).masked_fill(empty, neg_inf)


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sum of ``values`` (P,) over the segment (row) each belongs to, as (count,)."""
    return values.new_zeros(count).index_add_(0, segments, values)


def segment_logsumexp(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Log-sum-exp of finite ``values`` (P,) per segment, as (count,); ``-inf`` for an empty segment."""
    peak = values.new_full((count,), -torch.inf).scatter_reduce_(0, segments, values.detach(), "amax")
    finite_peak = peak.masked_fill(peak == -torch.inf, 0.0)
    total = segment_sum((values - finite_peak[segments]).exp_(), segments, count)
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + finite_peak).masked_fill(empty, -torch.inf)

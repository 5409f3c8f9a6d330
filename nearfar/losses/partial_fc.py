"""Partial FC: https://arxiv.org/abs/2203.15565 (An et al., CVPR 2022).

Each step compares the batch with a sample of the classes only, so that time goes with the sample, not the classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.draws import SeededDraws

_STREAM = 1  # apart from a head's own draws


class ClassSampler(nn.Module):
    """Draws the classes of a step: all classes of the batch, and others at random up to a fixed number.

    If the batch alone has more classes than that number, exactly those are taken.

    Args:
        num_classes: number of classes C.
        sample_rate: the share of the classes, in (0, 1]; floor(sample_rate * C) are drawn. 0.1 to 0.3 is usual above
            a million classes (official configurations).
        seed: of the draws.

    Raises:
        InputError: for a sample rate outside (0, 1], or one that leaves no class.

    Example:
        >>> import torch
        >>> from nearfar.losses.partial_fc import ClassSampler
        >>> sampler = ClassSampler(num_classes=10, sample_rate=0.4, seed=0)
        >>> classes = sampler(torch.tensor([7, 2, 7]))
        >>> len(classes), {2, 7} <= set(classes.tolist())
        (4, True)

    Source: the official implementation, for one process.
    """

    def __init__(self, num_classes: int, sample_rate: float, seed: int) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise InputError(f"sample_rate={sample_rate!r} is the share of the classes; it lies in (0, 1]")
        # 0.29 * 100 is 28.999999999999996 in binary.
        self.sample_size = math.floor(sample_rate * num_classes + 1e-9)
        if self.sample_size < 1:
            raise InputError(f"sample_rate={sample_rate!r} of num_classes={num_classes} leaves no class; raise it")
        self.num_classes, self.sample_rate = num_classes, sample_rate
        self.draws = SeededDraws(seed, _STREAM)

    def forward(self, labels: Tensor) -> Tensor:
        """Ids of the drawn classes, ascending. Labels of -1 are no class."""
        generator = self.draws.generator()
        known = labels.detach().cpu().numpy()
        positive = np.unique(known[known >= 0])
        if len(positive) < self.sample_size:
            score = generator.random(self.num_classes)
            score[positive] = 2.0
            positive = np.sort(np.argpartition(score, -self.sample_size)[-self.sample_size :])
        return torch.from_numpy(positive.astype(np.int64)).to(labels.device)


def take_classes(
    weight: Tensor, labels: Tensor, classes: Tensor, sub_centers: int = 1, sparse_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """The weights of the ascending ``classes``, (K * sub_centers, D), and the labels as positions in them."""
    center = torch.arange(sub_centers, device=classes.device)
    rows = (classes[:, None] * sub_centers + center).flatten()  # (K * sub_centers,)
    taken: Tensor = _TakeRows.apply(weight, rows, sparse_gradient)  # type: ignore[no-untyped-call]
    position = torch.searchsorted(classes, labels.clamp(min=0)).masked_fill(labels < 0, -1)
    return taken, position


class _TakeRows(torch.autograd.Function):
    """``weight[rows]`` for distinct ascending rows; the gradient of the others is never written."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count, ctx.sparse = len(weight), sparse
        return weight.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        if not ctx.sparse:
            return _zeros(ctx.count, gradient).index_copy_(0, rows, gradient), None, None
        shape = (ctx.count, gradient.shape[1])
        return (
            torch.sparse_coo_tensor(rows[None], gradient, shape, is_coalesced=True, check_invariants=False),
            None,
            None,
        )


def _zeros(rows: int, like: Tensor) -> Tensor:
    shape = (rows, like.shape[1])
    if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64):
        # NumPy asks the system for zeroed pages, torch writes zeros: for 100,000 classes that took as long as the
        # whole step with a tenth of them.
        return torch.from_numpy(np.zeros(shape, np.float32 if like.dtype == torch.float32 else np.float64))
    return like.new_zeros(shape)

"""Class means of a batch, for losses that compare with prototypes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearfar.losses.contract import Path


class ClassMeans(NamedTuple):
    """The classes of a batch, in ascending order of their labels, then unused slots.

    Attributes:
        means: mean embedding (V, D), under autograd; 0 in an unused slot.
        labels: (V,); 0 in an unused slot.
        sizes: number of samples, (V,), in the dtype of the means; 0 in an unused slot.
        slots: the slot of each sample, (B,).
    """

    means: Tensor
    labels: Tensor
    sizes: Tensor
    slots: Tensor

    @property
    def present(self) -> Tensor:
        """Which slots are used, boolean (V,)."""
        return self.sizes > 0


def class_means(embeddings: Tensor, labels: Tensor, path: Path) -> ClassMeans:
    """Group a batch by its labels.

    Args:
        embeddings: (B, D).
        labels: integers (B,).
        path: "streamed" has a slot per class that occurs. "dense" has a slot per sample, so that no shape depends on
            the labels: ``torch.compile`` needs that.
    """
    ordered, order = torch.sort(labels, stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    slots = torch.empty_like(order).scatter_(0, order, is_new.cumsum(0) - 1)  # (B,)
    count = len(labels) if path == "dense" else int(is_new.sum())
    sizes = embeddings.new_zeros(count).index_add(0, slots, embeddings.new_ones(len(labels)))  # (V,)
    sums = embeddings.new_zeros(count, embeddings.shape[1]).index_add(0, slots, embeddings)  # (V, D)
    found = labels.new_zeros(count).scatter(0, slots, labels)  # (V,)
    return ClassMeans(sums / sizes.clamp(min=1)[:, None], found, sizes, slots)

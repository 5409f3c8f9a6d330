"""A proxy for every class of the training set: running means of embeddings that training computes anyway."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nearfar.losses.engine.distributed import process_count


class ProxyBank:
    """Class means, replaced once an epoch; a class that was not seen keeps the proxy it has.

    Means of unit vectors are normalised again, so that the nearest by cosine and by distance are the same.

    Args:
        classes: number of classes, N.

    Attributes:
        proxies: unit vectors (N, D), float32 on the CPU, zero for a class that was never seen; None before the first
            epoch has ended.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.proxies: Tensor | None = None
        self._sums: Tensor | None = None  # (N, D), this process's part of the running epoch
        self._counts = torch.zeros(classes)

    def add(self, vectors: Tensor, classes: Tensor) -> None:
        """Count vectors (B, D) towards the means of their classes (B,) in the running epoch."""
        vectors = vectors.detach().to("cpu", torch.float32)
        if self._sums is None:
            self._sums = torch.zeros(self.classes, vectors.shape[1])
        classes = classes.to("cpu")
        self._sums.index_add_(0, classes, vectors)
        self._counts.index_add_(0, classes, torch.ones(len(classes)))

    def end_epoch(self, device: torch.device) -> None:
        """Make the running means the proxies, those of all processes together, and start anew.

        Args:
            device: where the process group communicates.
        """
        sums, counts = self._sums, self._counts
        if process_count() > 1:
            sums, counts = _of_all(sums, counts, device)
        if sums is None:
            return
        means = F.normalize(sums, dim=1)  # the mean and the sum point the same way
        old = torch.zeros_like(means) if self.proxies is None else self.proxies
        self.proxies = torch.where(counts[:, None] > 0, means, old)
        self._sums, self._counts = None, torch.zeros(self.classes)

    def state(self) -> dict[str, Tensor]:
        """Everything, by name."""
        found = {"counts": self._counts, "proxies": self.proxies, "sums": self._sums}
        return {name: value for name, value in found.items() if value is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        self._counts, self.proxies, self._sums = state["counts"], state.get("proxies"), state.get("sums")


def _of_all(sums: Tensor | None, counts: Tensor, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Sums and counts over all processes, of which some may have seen nothing."""
    width = torch.tensor(0 if sums is None else sums.shape[1], device=device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    counts = counts.to(device, copy=True)
    dist.all_reduce(counts)
    if width == 0:
        return None, counts.cpu()
    total = torch.zeros(len(counts), int(width), device=device) if sums is None else sums.to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu(), counts.cpu()

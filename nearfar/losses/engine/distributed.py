"""The batch of all processes: collectives that autograd can go back through.

Each process compares its own rows with the columns of all. What it returns is the loss of the whole batch, the same
number everywhere, and its backward pass is the true adjoint of the forward pass: a process receives the gradients that
the losses of *all* processes have on its tensors. Since those losses are equal, that is the gradient of the whole batch
times the number of processes, and a caller that averages gradients, as ``DistributedDataParallel`` does, gets the
gradient of the whole batch exactly. A parameter is used by every process and averaged likewise, so it counts once.

All processes must make the same calls in the same order; one without any rows takes part as the others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nearfar.errors import InputError


def process_count() -> int:
    """How many processes share the batch; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Shard:
    """How the rows of a tensor are spread over the processes.

    Attributes:
        sizes: number of rows on each process.
        rank: which process this is.
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def offset(self) -> int:
        """Where this process's rows begin in the whole tensor."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """Number of rows of the whole tensor."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This process's rows of the whole tensor."""
        return slice(self.offset, self.offset + self.sizes[self.rank])

    def gather(self, part: Tensor) -> Tensor:
        """The whole tensor (total, ...) from each process's part, in the order of the ranks, under autograd."""
        whole: Tensor = _Gather.apply(part, self)  # type: ignore[no-untyped-call]
        return whole


def shards(rows: Mapping[str, Tensor | None], layout: Mapping[str, int] | None = None) -> dict[str, Shard]:
    """Tell all processes how many rows each has.

    Args:
        rows: tensors by name; None where an argument was not given, on no process.
        layout: further numbers that must agree, such as a width, by name.

    Returns:
        The shard of every tensor that was given.

    Raises:
        InputError: on all processes, when they were not called alike. Otherwise they would wait for each other for
            ever.
    """
    device = next(tensor.device for tensor in rows.values() if tensor is not None)
    agreed = {**{name: int(tensor is not None) for name, tensor in rows.items()}, **(layout or {})}
    counts = [0 if tensor is None else len(tensor) for tensor in rows.values()]
    mine = torch.tensor([*agreed.values(), *counts], device=device)
    everyone = [torch.empty_like(mine) for _ in range(process_count())]
    dist.all_gather(everyone, mine)
    table = [each.tolist() for each in everyone]
    for position, name in enumerate(agreed):
        found = [row[position] for row in table]
        if len(set(found)) > 1:
            raise InputError(
                f"{name} differs between processes ({', '.join(map(str, found))} on ranks 0 to {len(found) - 1}; 0 "
                "for what is missing): with gather_across_devices every process passes the same kinds of arguments"
            )
    sizes = list(zip(*(row[len(agreed) :] for row in table), strict=True))
    return {
        name: Shard(sizes[position], dist.get_rank())
        for position, (name, tensor) in enumerate(rows.items())
        if tensor is not None
    }


def distinct_ids(count: int, taken: Tensor) -> Tensor:
    """Integers (count,) that no other process gets, above those that are taken on any process."""
    lowest = torch.iinfo(torch.int64).min // 2
    largest = taken.max() if len(taken) else torch.tensor(lowest, device=taken.device)
    first = max_over_processes(largest) + 1
    found: Tensor = first + dist.get_rank() + process_count() * torch.arange(count, device=taken.device)
    return found


def sum_over_processes(part: Tensor) -> Tensor:
    """Sum of the processes' tensors, under autograd."""
    whole: Tensor = _Sum.apply(part)  # type: ignore[no-untyped-call]
    return whole


def max_over_processes(part: Tensor) -> Tensor:
    """Elementwise maximum of the processes' tensors. No gradient."""
    whole = part.detach().clone()
    dist.all_reduce(whole, dist.ReduceOp.MAX)
    return whole


class _Sum(torch.autograd.Function):
    """All-reduce; its own adjoint."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)


class _Gather(torch.autograd.Function):
    """All-gather of unequal parts. Its adjoint sums over the processes and keeps the own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return _gather(part, shard)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _SumToOwn.apply(gradient, ctx.shard), None  # type: ignore[no-untyped-call]


class _SumToOwn(torch.autograd.Function):
    """The adjoint of ``_Gather``."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        total = whole.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[shard.own].clone()  # not a view: the whole would live as long as it

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.gather(gradient), None


def _gather(part: Tensor, shard: Shard) -> Tensor:
    if part.dtype == torch.bool:  # not every backend moves booleans
        return _gather(part.to(torch.uint8), shard).bool()
    longest = max(shard.sizes)
    missing: Sequence[int] = [0, 0] * (part.ndim - 1) + [0, longest - len(part)]
    padded = F.pad(part, missing).contiguous()  # (longest, ...)
    received = [torch.empty_like(padded) for _ in shard.sizes]
    dist.all_gather(received, padded)
    return torch.cat([piece[:size] for piece, size in zip(received, shard.sizes, strict=True)])  # (total, ...)

"""What runs inside the processes of a gloo group, and how they are started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from nearfar.losses.engine import comparison
from tests.losses.cases import CASES, Case
from tests.losses.distributed.split import split
from tests.losses.inputs import DIM, Inputs, Scenario, scenarios_for

WORLDS = (3, 2)
Records = list[dict[str, Any]]


def run(
    work: Callable[[int], Records], folder: Path, worlds: tuple[int, ...] = WORLDS, patience: float = 240
) -> Records:
    """Start processes once, run ``work(world)`` in a group of each size, and return what rank 0 recorded.

    ``patience`` are the seconds that a process waits for the others; on a busy machine their imports alone take many.
    """
    mp.spawn(_main, (work, str(folder), worlds, patience), nprocs=max(worlds))
    return [record for world in worlds for record in json.loads((folder / f"{world}.json").read_text())]


def _main(rank: int, work: Callable[[int], Records], folder: str, worlds: tuple[int, ...], patience: float) -> None:
    torch.set_num_threads(1)
    for world in worlds:
        if rank >= world:
            continue
        store = f"file://{folder}/rendezvous-{world}"
        timeout = timedelta(seconds=patience)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
        records = [{"world": world, **record} for record in work(world)]
        if rank == 0:
            Path(folder, f"{world}.json").write_text(json.dumps(records))
        dist.barrier()
        dist.destroy_process_group()


# The gradient of the whole batch


def every_loss(world: int) -> Records:
    """Errors of every loss of the table, against the same loss of the whole batch in one process."""
    comparison.TILE_BYTES, comparison._FEWEST_ROWS, comparison._WIDEST_TILE = 1, 3, 4  # several tiles
    records = []
    for case, variant, scenario, kind, options in jobs(every_scenario=world == max(WORLDS)):
        whole, parts = split(scenario(torch.Generator().manual_seed(3), DIM), world, kind)
        errors = compare(case, variant, options, whole, parts)
        name = f"{case.name}-{variant}-{scenario.__name__}-{kind}-{options}"
        records.append({"case": case.name, "job": name, **errors})
    return records


def jobs(every_scenario: bool) -> Iterator[tuple[Case, int, Scenario, str, dict[str, Any]]]:
    """Every variant, path, reduction and split on an ordinary batch; in the largest group every scenario as well."""
    for case in CASES:
        if not case.capabilities.gathers:
            continue
        scenarios = scenarios_for(case.capabilities)
        usual = scenarios[0]
        for scenario in scenarios if every_scenario else scenarios[:1]:
            yield case, 0, scenario, "uneven", {}
        for variant in range(len(case.options)):
            yield case, variant, usual, "one_empty", {}
            yield case, variant, usual, "uneven", {"path": "dense"}
            options = case.options[variant]
            if case.capabilities.unreduced and "grouping" not in options and not options.get("symmetric"):
                yield case, variant, usual, "uneven", {"reduction": "none"}


def encoder() -> nn.Module:
    """The same small network every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM)).double()


def encoded(model: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs whose embeddings come out of the network; one object stays one object."""
    changes = {}
    for leaf in inputs.leaves().values():
        output = model(leaf)
        changes.update({name: output for name in inputs.floats if getattr(inputs, name) is leaf})
    return type(inputs)(**{**vars(inputs), **changes})


def compare(case: Case, variant: int, options: dict[str, Any], whole: Inputs, parts: list[Inputs]) -> dict[str, float]:
    """Relative errors of the value and of the averaged gradients."""
    rank = dist.get_rank()
    cotangent = None
    start = sum(_rows(part) for part in parts[:rank])
    own = slice(start, start + _rows(parts[rank]))
    if options.get("reduction") == "none":
        cotangent = torch.linspace(-1, 2, _rows(whole), dtype=torch.float64)
    expected, wanted = gradients(case.build(variant, **options), whole, cotangent)
    loss = case.build(variant, **options, gather_across_devices=True)
    # The whole objective is the sum of the processes' shares of it; they are averaged.
    share = None if cotangent is None else cotangent[own] * len(parts)
    value, found = gradients(loss, parts[rank], share)
    found = {name: average(gradient) for name, gradient in found.items()}
    largest = max(map(norm, wanted.values()))
    # Distances do not change with the last bias: its gradient is rounding, which has no relative error.
    errors = {name: relative(found[name], wanted[name], floor=1e-3 * largest) for name in wanted}
    buffers = dict(loss.named_buffers())
    errors |= {
        name: relative(buffers[name].double(), buffer.double()) for name, buffer in _buffers(case, variant, whole)
    }
    at = torch.tensor(relative(value, expected if cotangent is None else expected[own]))
    dist.all_reduce(at, dist.ReduceOp.MAX)
    return {"value": at.item(), "gradient": max(errors.values()), "largest": largest}


def _buffers(case: Case, variant: int, whole: Inputs) -> list[tuple[str, Tensor]]:
    loss = case.build(variant)
    if not list(loss.buffers()):
        return []
    encoded(encoder(), whole).call(loss)
    return list(loss.named_buffers())


def gradients(loss: nn.Module, inputs: Inputs, cotangent: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Value, and the gradients of the network's and the loss's parameters."""
    model = encoder()
    value = encoded(model, inputs).call(loss)
    value.backward(cotangent)
    named = {**dict(model.named_parameters(prefix="encoder")), **dict(loss.named_parameters(prefix="loss"))}
    return value.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items() if p.requires_grad
    }


def average(gradient: Tensor) -> Tensor:
    """As ``DistributedDataParallel`` does."""
    total = gradient.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm, or over ``floor`` where that is larger."""
    assert found.shape == expected.shape
    return norm(found - expected) / (max(norm(expected), floor) + 1e-9)


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _rows(inputs: Inputs) -> int:
    return len(next(iter(inputs.leaves().values())))

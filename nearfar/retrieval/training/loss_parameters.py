"""The parameters that a loss owns: class weights, a learned scale and bias, proxies, moving averages.

sentence-transformers' trainer optimises them, but does not clip their gradients, save them, restore them or keep them
alike in several processes. These functions find them; ``Trainer`` does the rest.

What belongs to the trained model is told by identity, not by name: a loss may hold the model under any name and at any
depth. Another encoder inside a loss is a teacher: it does not learn, so it is no part of the loss's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.base.model import BaseModel
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.retrieval.training.processes import process_count


def losses_by_prefix(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The losses of a trainer, each with what its names begin with: several data sets may have one each."""
    if isinstance(loss, Mapping):
        return {f"{name}.": each for name, each in loss.items()}
    return {"": loss}


def own_parameters(loss: nn.Module | Mapping[str, nn.Module], model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters of the loss that are neither the model's nor a teacher's, by name."""
    return {name: p for name, p in own_state(loss, model).items() if isinstance(p, nn.Parameter) and p.requires_grad}


def own_state(loss: nn.Module | Mapping[str, nn.Module], model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tensor-valued extra state of the loss that are not the model's or a teacher's.

    Args:
        loss: the trainer's loss, or losses by data set.
        model: the trained model; what wraps it for several devices makes no difference.

    Returns:
        The very tensors, not copies, by the names that ``load_own_state`` knows.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 2)
        >>> loss = nn.ModuleDict({"head": nn.Linear(2, 3, bias=False), "deep": nn.Sequential(model)})
        >>> list(own_state(loss, model))
        ['head.weight']
    """
    found: dict[str, Tensor] = {}
    for prefix, each in losses_by_prefix(loss).items():
        foreign = {id(tensor) for tensor in _tensors_of_encoders(each, model)}
        for name, value in each.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and id(value) not in foreign:
                found[prefix + name] = value
    return found


def load_own_state(
    loss: nn.Module | Mapping[str, nn.Module], model: nn.Module, state: Mapping[str, Tensor], source: object
) -> None:
    """Put saved values into the loss.

    Raises:
        InputError: when they are those of another loss.
    """
    # Buffers may have grown since, such as a memory of embeddings.
    parameters = own_parameters(loss, model)
    differing = sorted(own_state(loss, model).keys() ^ state.keys())
    differing += [name for name, value in state.items() if name in parameters and parameters[name].shape != value.shape]
    if differing:
        raise InputError(
            f"{source} holds the parameters of another loss ({', '.join(differing[:5])} differ); "
            "train with the loss it was saved with"
        )
    for prefix, each in losses_by_prefix(loss).items():
        mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        each.load_state_dict(mine, strict=False)


def regroup(
    groups: Iterable[Mapping[str, Any]], own: Iterable[nn.Parameter], learning_rate: float | None
) -> list[dict[str, Any]]:
    """An optimiser's groups with the loss's own parameters in groups of their own, after all others.

    Args:
        groups: groups as ``torch.optim`` takes them. A group's own learning rate stands.
        own: the loss's parameters. Single numbers among them (a scale, a bias) get no weight decay, which would pull
            them to 0.
        learning_rate: of those parameters; None for that of the model.
    """
    wanted = {id(parameter) for parameter in own}
    kept: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    for group in groups:
        of_loss = [p for p in group["params"] if id(p) in wanted]
        kept.append({**group, "params": [p for p in group["params"] if id(p) not in wanted]} if of_loss else {**group})
        rate = {} if learning_rate is None or "lr" in group else {"lr": learning_rate}
        for decay in ({}, {"weight_decay": 0.0}):
            chosen = [p for p in of_loss if (p.numel() == 1) == bool(decay)]
            if chosen:
                moved.append({**group, **rate, **decay, "params": chosen})
    return kept + moved


def make_alike(loss: nn.Module | Mapping[str, nn.Module], model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers of the loss."""
    if process_count() > 1:
        for tensor in [*_distinct(own_parameters(loss, model).values()), *_buffers(loss, model)]:
            dist.broadcast(tensor.data, src=0)


def average_gradients(loss: nn.Module | Mapping[str, nn.Module], model: nn.Module) -> None:
    """Average the loss's own gradients over the processes, as ``DistributedDataParallel`` does with the model's.

    A parameter without a gradient in some process counts there as 0; without one in any it keeps none. Buffers become
    the first process's, except those of losses that share the batch, which are equal already.
    """
    if process_count() == 1:
        return
    parameters = _distinct(own_parameters(loss, model).values())
    if parameters:
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, has.tolist(), strict=True):
            if anywhere:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(gradient)
                parameter.grad = gradient / process_count()
    for buffer in _buffers(loss, model, shared=False):
        dist.broadcast(buffer.data, src=0)


def _buffers(loss: nn.Module | Mapping[str, nn.Module], model: nn.Module, shared: bool = True) -> Iterator[Tensor]:
    for each in losses_by_prefix(loss).values():
        seen = {id(tensor) for tensor in _tensors_of_encoders(each, model)}
        for module in each.modules():
            if not shared and getattr(module, "shares_batch", False):
                continue
            for buffer in module.buffers(recurse=False):
                if id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield buffer


def _tensors_of_encoders(loss: nn.Module, model: nn.Module) -> Iterator[Tensor]:
    teachers = [module for module in loss.modules() if isinstance(module, BaseModel)]
    for encoder in [model, *teachers]:
        yield from encoder.parameters()
        yield from encoder.buffers()


def _distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())

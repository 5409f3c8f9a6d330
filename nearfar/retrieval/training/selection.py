"""Which of a model's parameters learn: all, some, or low-rank adapters beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from nearfar.errors import InputError, MissingDependencyError, UnknownNameError
from nearfar.retrieval.training.options import LoraOptions


@contextmanager
def frozen(model: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Within, parameters in whose name a regular expression is found do not learn.

    Raises:
        InputError: for a pattern that is not a regular expression, or that is found nowhere.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen: list[nn.Parameter] = []
    for pattern in patterns:
        try:
            matching = [parameter for name, parameter in found.items() if re.search(pattern, name)]
        except re.error as error:
            raise InputError(f"freeze: {pattern!r} is not a regular expression ({error})") from error
        if not matching:
            raise UnknownNameError("parameter to freeze", pattern, found)
        chosen += matching
    for parameter in chosen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def add_adapters(model: SentenceTransformer, lora: LoraOptions, seed: int) -> None:
    """Put low-rank adapters, drawn from a seed, into the model's transformer; its own weights no longer learn.

    Raises:
        MissingDependencyError: without the package ``peft``.
        InputError: for a model that takes none, or layers it does not have.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError("lora needs the package peft; install it: pip install peft") from error
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=None if lora.target_modules is None else list(lora.target_modules),
        inference_mode=False,
    )
    torch.manual_seed(seed)
    try:
        model.add_adapter(config)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"lora: {type(model[0]).__name__} takes no such adapters: {error}") from error

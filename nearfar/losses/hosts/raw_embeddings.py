"""Embeddings from before a final normalisation, for losses that read their length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from nearfar.errors import InputError

_RAW = "nearfar_raw_embedding"
_EMBEDDING = "sentence_embedding"


@contextmanager
def raw_embeddings(model: nn.Module) -> Iterator[None]:
    """Within, a ``SentenceTransformer`` gives the embeddings from before its final ``Normalize``.

    A wrapper that shortens embeddings, such as ``MatryoshkaLoss``, gets raw ones of its length.

    Args:
        model: the model, or what wraps it for several devices or for a compiler.

    Raises:
        InputError: when the model does nothing but normalise, or ends in a ``Router`` whose routes normalise.
    """

    def keep(module: nn.Module, inputs: Any, output: dict[str, Any]) -> dict[str, Any]:
        return {**output, _RAW: output[_EMBEDDING]}

    # A hook on the outermost module, so that it also has the last word over a patched or wrapped forward.
    def swap(module: nn.Module, inputs: Any, output: dict[str, Any]) -> dict[str, Any]:
        width = output[_EMBEDDING].shape[1]
        return {**output, _EMBEDDING: output[_RAW][:, :width]}  # (B, width)

    handles = [_last_before_normalize(model).register_forward_hook(keep), model.register_forward_hook(swap)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_before_normalize(model: nn.Module) -> nn.Module:
    from sentence_transformers.base.modules import Normalize, Router

    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    kept = [module for module in model.children() if not isinstance(module, Normalize)]
    if not kept:
        raise InputError(f"{type(model).__name__} has no module before its Normalize to take raw embeddings from")
    if isinstance(kept[-1], Router) and any(isinstance(module, Normalize) for module in kept[-1].modules()):
        raise InputError(
            "the model normalises inside the routes of its Router; for a loss that reads the length of embeddings "
            "move Normalize behind the Router"
        )
    return kept[-1]

"""GradCache: https://arxiv.org/abs/2101.06983 (Gao et al., 2021), on sentence-transformers' implementation.

A batch is embedded in mini-batches without a graph, the loss of the whole batch is taken from these embeddings, and
each mini-batch is embedded again to receive its gradient. Imports sentence-transformers, so import it where needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.losses import CachedLossMixin
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nearfar.errors import InputError
from nearfar.losses.combine import LoggedParts, WeightedSum
from nearfar.losses.hosts.raw_embeddings import raw_embeddings
from nearfar.losses.label_batch import in_full_precision

if TYPE_CHECKING:
    from nearfar.losses.hosts.sentence_transformers import ForSentenceTransformer


def forward_cached(
    host: ForSentenceTransformer, features: list[dict[str, Tensor]], labels: Tensor | None
) -> Tensor | LoggedParts:
    """The loss of a batch embedded in mini-batches; its ``backward`` embeds them again.

    Args:
        host: gives model, mini-batch size, and the loss by ``calculate_loss``.
        features: one dictionary of model inputs per text column.
        labels: the label column.
    """
    is_wrapped = "calculate_loss" in vars(host)  # as MatryoshkaLoss does, to shorten the embeddings
    if is_wrapped and host.needs_norms:
        raise InputError(
            f"{type(host.loss).__name__} reads the length of the embeddings, which MatryoshkaLoss removes from cached "
            "ones: train without mini_batch_size"
        )
    cached = GradCachePass(host)
    value: Tensor = cached.forward_cached(features, labels)
    if cached.total.requires_grad:
        value = value + (cached.total - cached.total.detach())
    if isinstance(host.loss, WeightedSum) and not is_wrapped:
        first, *others = host.loss.last_parts
        rest = {name: host.loss.last_parts[name] for name in others}
        # One part carries the gradient of all: the trainer sums them.
        return LoggedParts({first: value - sum(rest.values()), **rest})
    return value


def backward_to_embeddings(value: Tensor, embeddings: list[list[Tensor]], loss: nn.Module) -> Tensor:
    """Set the gradient of each mini-batch; return the value, whose ``backward`` reaches the loss's own parameters.

    Those must not get theirs at once, as the embeddings do: only the trainer's ``backward`` knows by how much gradient
    accumulation and loss scaling multiply it.

    Args:
        value: the loss, a scalar.
        embeddings: leaves (M, D), by column and mini-batch.
        loss: the module whose parameters count.
    """
    leaves = [leaf for column in embeddings for leaf in column]
    owned = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, [*leaves, *owned], allow_unused=True)
    for leaf, gradient in zip(leaves, gradients, strict=False):
        leaf.grad = gradient
    own = [(p, g) for p, g in zip(owned, gradients[len(leaves) :], strict=True) if g is not None]
    carried: Tensor = _Carry.apply(value.detach(), [g for _, g in own], *[p for p, _ in own])  # type: ignore[no-untyped-call]
    return carried


class GradCachePass(CachedLossMixin):
    """One forward pass of a host. ``total`` is the loss as calculated, connected to the loss's own parameters."""

    total: Tensor

    def __init__(self, host: ForSentenceTransformer) -> None:
        assert host.mini_batch_size is not None
        self.host, self.model, self.mini_batch_size = host, host.model, host.mini_batch_size

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The host's loss, kept."""
        self.total = self.host.calculate_loss(reps, labels, with_backward=with_backward)
        return self.total

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """Embeddings in full precision, so that their gradients, not yet scaled, do not underflow."""
        if self.host.needs_norms:
            with raw_embeddings(self.model):
                embeddings, random_state = super().embed_minibatch(*args, **kwargs)
        else:
            embeddings, random_state = super().embed_minibatch(*args, **kwargs)
        return in_full_precision(embeddings), random_state


class _Carry(torch.autograd.Function):
    """A value with known gradients of parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outer * gradient for gradient in ctx.gradients))

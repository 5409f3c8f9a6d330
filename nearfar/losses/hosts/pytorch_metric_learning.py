"""nearfar's losses where pytorch-metric-learning checks types or names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.contract import Loss

# A class name that its CrossBatchMemory and SelfSupervisedLoss accept; they know losses by class name alone.
_ACCEPTED = "ContrastiveLoss"


def as_pml(loss: Loss) -> nn.Module:
    """A label loss as pytorch-metric-learning's wrappers want it.

    Its ``MultipleLosses``, miners and trainers take nearfar's losses as they are. ``CrossBatchMemory`` and
    ``SelfSupervisedLoss`` accept losses by class name, ``DistributedLossWrapper`` by base class: those need this
    adapter. A loss that cannot compare with a reference set (one with class weights) keeps its class name, so both
    refuse it; one that cannot honour mined pairs raises when ``CrossBatchMemory`` calls it.

    With ``DistributedLossWrapper`` use ``efficient=False``: ``efficient=True`` does not give the gradient of the global
    batch for any loss.

    Args:
        loss: a label loss. It is called, not copied; its reduction stands, a PML reducer does not apply.

    Returns:
        A ``BaseMetricLossFunction`` that calls the loss, its only child ``loss``.

    Raises:
        InputError: for a query-document loss.

    Example:
        >>> import torch
        >>> from nearfar.losses import ThresholdConsistentMarginLoss, as_pml
        >>> from pytorch_metric_learning.losses import CrossBatchMemory
        >>> memory = CrossBatchMemory(as_pml(ThresholdConsistentMarginLoss()), embedding_size=2, memory_size=8)
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(memory(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.6

    Source: pytorch-metric-learning 2.9.
    """
    if not isinstance(loss, Loss) or loss.capabilities.inputs != "labels":
        raise InputError(
            f"{type(loss).__name__} does not learn from labels; pytorch-metric-learning has only such losses"
        )
    adapter = _adapter(_ACCEPTED if loss.capabilities.reference_set else type(loss).__name__)
    return adapter(loss)


@functools.cache
def _adapter(name: str) -> type[nn.Module]:
    from pytorch_metric_learning.losses import BaseMetricLossFunction

    class Adapter(BaseMetricLossFunction):
        def __init__(self, loss: Loss) -> None:
            super().__init__()
            self.loss = loss

        def forward(
            self,
            embeddings: Tensor,
            labels: Tensor | None = None,
            indices_tuple: Sequence[Tensor] | None = None,
            ref_emb: Tensor | None = None,
            ref_labels: Tensor | None = None,
        ) -> Tensor:
            value: Tensor = self.loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return value

        def __repr__(self) -> str:
            return f"as_pml({self.loss!r})"

        # The class is made at run time, so pickle and deepcopy are told to make it again.
        def __reduce__(self) -> tuple[Any, ...]:
            return as_pml, (self.loss,), {"training": self.training}

    return type(name, (Adapter,), {})

"""Data sets of tensors with labels: images, series, features, anything a module embeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from nearfar.errors import InputError


class TensorData(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and their labels, in memory.

    Args:
        inputs: tensor or array (N, ...), one row a sample.
        labels: integers (N,), or multi-hot (N, L).

    Raises:
        InputError: no samples, lengths that differ, or labels that are not integers.

    Example:
        >>> import torch
        >>> from nearfar.retrieval import TensorData
        >>> data = TensorData(torch.eye(3), [0, 0, 1])
        >>> len(data), data[2]
        (3, (tensor([0., 0., 1.]), tensor(1)))
    """

    def __init__(self, inputs: Any, labels: Any) -> None:
        self.inputs, self.labels = torch.as_tensor(inputs), torch.as_tensor(labels)
        if self.inputs.ndim == 0 or len(self.inputs) == 0:
            raise InputError(f"inputs has shape {tuple(self.inputs.shape)}; it needs at least one sample, (N, ...)")
        if self.labels.ndim not in (1, 2) or len(self.labels) != len(self.inputs):
            raise InputError(
                f"labels has shape {tuple(self.labels.shape)} for {len(self.inputs)} inputs; "
                "it needs one label a sample, (N,), or multi-hot rows, (N, L)"
            )
        _check_integers(self.labels)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.labels[row]


class NumberedBatches(Dataset[dict[str, Any]]):
    """Collates whole batches of a data set: ``inputs``, ``labels``, and ``rows``, the samples' places in it.

    The loader's collator gets a finished batch and passes it on, see ``as_is``.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = check_data(data)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """The batch of these rows."""
        index = torch.as_tensor(rows)  # (B,)
        if isinstance(self.data, TensorData):
            inputs, labels = self.data.inputs[index], self.data.labels[index]
        else:
            inputs, labels = default_collate([self._pair(row) for row in index.tolist()])
        return {"inputs": inputs, "labels": _check_integers(labels), "rows": index}

    def _pair(self, row: int) -> tuple[Any, Any]:
        sample = self.data[row]
        if not isinstance(sample, Sequence) or len(sample) != 2:
            raise InputError(f"sample {row} of the data set is a {type(sample).__name__}; give pairs (input, label)")
        return sample[0], sample[1]

    def in_order(self, size: int) -> Iterator[dict[str, Any]]:
        """All batches of `size`, in order."""
        for first in range(0, len(self), size):
            yield self.__getitems__(range(first, min(first + size, len(self))))


def as_is(batch: Any) -> Any:
    """The collator of ``NumberedBatches``."""
    return batch


def check_data(data: Any) -> Dataset[Any]:
    """A data set that can be sampled in any order.

    Raises:
        InputError: it is none, has no length, or is empty.
    """
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise InputError(
            f"a torch.nn.Module learns from TensorData(inputs, labels), or from a torch.utils.data.Dataset with a "
            f"length whose samples are pairs (input, label); this is a {type(data).__name__}"
        )
    if len(data) == 0:
        raise InputError("the data set is empty; give at least one pair (input, label)")
    return data


def describe_tensors(data: Dataset[Any]) -> dict[str, Any]:
    """Size, and where all is in memory a hash of the content: what a resumed run checks."""
    found: dict[str, Any] = {"rows": len(data)}  # type: ignore[arg-type]
    if isinstance(data, TensorData):
        digest = hashlib.sha256()
        for tensor in (data.inputs, data.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found["sha256"] = digest.hexdigest()
    return found


def labels_of(data: Dataset[Any]) -> Tensor:
    """All labels of a data set, (N,) or (N, L).

    They are taken from its attribute ``labels`` or ``targets`` (torchvision's name) where there is one, of a
    ``Subset`` from the data set it belongs to; otherwise every sample is read once.
    """
    if isinstance(data, Subset):
        return labels_of(data.dataset)[torch.as_tensor(data.indices)]
    for name in ("labels", "targets"):
        if (found := getattr(data, name, None)) is not None:
            return _check_integers(torch.as_tensor(found))
    batches = NumberedBatches(data).in_order(1024)
    return _check_integers(torch.cat([batch["labels"] for batch in batches]))


@torch.no_grad()
def embed(module: nn.Module, data: Dataset[Any], batch_size: int = 128) -> Tensor:
    """Embed a data set with a module in evaluation mode, on the module's device.

    Args:
        module: maps a batch of inputs to embeddings (B, D).
        data: ``TensorData``, or any data set of pairs (input, label) with a length.
        batch_size: samples embedded at once.

    Returns:
        Embeddings (N, D) on the CPU, in the order of the data, in float32 or better.

    Raises:
        InputError: the data set is empty or yields no pairs, or the module returns anything but (B, D).

    Example:
        >>> import torch
        >>> from nearfar.retrieval import TensorData, embed
        >>> embed(torch.nn.Linear(3, 2), TensorData(torch.eye(3), [0, 0, 1])).shape
        torch.Size([3, 2])
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    found = []
    with _evaluating(module):
        for batch in NumberedBatches(data).in_order(batch_size):
            embeddings = check_embeddings(module, module(_on(device, batch["inputs"])), len(batch["rows"]))
            found.append(embeddings.to("cpu", torch.promote_types(embeddings.dtype, torch.float32)))
    return torch.cat(found)  # (N, D)


def check_embeddings(module: nn.Module, embeddings: Any, batch: int) -> Tensor:
    """What a module returned for a batch, if it is embeddings (B, D)."""
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != batch:
        shape = (
            f"shape {tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else f"a {type(embeddings).__name__}"
        )
        raise InputError(
            f"{type(module).__name__} returned {shape} for {batch} inputs; it must return embeddings, ({batch}, D)"
        )
    return embeddings


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; each part returns to its own mode, since some may be frozen in evaluation mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _on(device: torch.device, inputs: Any) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(inputs, device)


def _check_integers(labels: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels are {str(labels.dtype).removeprefix('torch.')}; give integers, one number a class")
    return labels

"""Checks of arguments: each says what is wrong, its value, and the fix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearfar.errors import InputError


def check_matrix(name: str, tensor: Tensor) -> None:
    """A floating-point matrix."""
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; it needs floating point (B, D)"
        )


def check_same_width(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Both matrices have the same number of columns."""
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"{first_name} has {first.shape[1]} dimensions and {second_name} {second.shape[1]}: they must agree"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")
    return value


def check_positive(name: str, value: float) -> float:
    """A finite number above zero."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r} must be a finite number above 0")
    return float(value)


def check_relevance(relevance: Tensor | None, shape: tuple[int, int]) -> None:
    """Grades fit the batch and lie in [0, 1]."""
    if relevance is None:
        if shape[1] < shape[0]:
            raise InputError(
                f"{shape[0]} queries have only {shape[1]} documents: without relevance, document i answers query i"
            )
        return
    if tuple(relevance.shape) != shape:
        raise InputError(
            f"relevance has shape {tuple(relevance.shape)}; it needs {shape}: a row a query, a column a document"
        )
    grades = relevance if relevance.layout == torch.strided else relevance.to_sparse_coo().coalesce().values()  # type: ignore[no-untyped-call]
    if readable(grades) and not bool(((grades >= 0) & (grades <= 1)).all()):
        raise InputError(
            f"relevance holds {grades.min():g} to {grades.max():g}; grades lie in [0, 1]: divide by the top"
        )


def check_class_labels(labels: Tensor | None, num_classes: int, ignored: int | None = None) -> Tensor:
    """Integer labels (B,) of known classes, or the label ``ignored`` (just below 0) of samples without a class."""
    assert labels is not None
    if readable(labels):
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < (0 if ignored is None else ignored) or highest >= num_classes:
            leave_out = "" if ignored is None else f", and {ignored} leaves a sample out"
            raise InputError(
                f"labels run from {lowest} to {highest}; with num_classes={num_classes} they lie in "
                f"[0, {num_classes - 1}]{leave_out}"
            )
    return labels.long()


def weights_for(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Class weights (C, D) for embeddings (B, D).

    A Matryoshka wrapper shortens the embeddings: the first dimensions of the weights go with them.
    """
    width, size = embeddings.shape[1], weight.shape[1]
    if width > size:
        raise InputError(f"embeddings have {width} dimensions; the loss was made with embedding_size={size}")
    return weight[:, :width]


def readable(values: Tensor) -> bool:
    """Whether the values can be looked at: an accelerator would make every step wait, and a compiler has none."""
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()

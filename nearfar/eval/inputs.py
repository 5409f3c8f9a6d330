"""Embeddings and labels as the evaluation takes them: checked once, then plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nearfar.errors import InputError

ArrayLike: TypeAlias = "NDArray[Any] | torch.Tensor | Sequence[Any]"
Floats: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"


@dataclass(frozen=True)
class ClassLabels:
    """Labels as integer codes.

    Attributes:
        codes: int64 (N,), the position of each sample's label in `names`.
        names: the distinct labels, ascending.
        sizes: int64 (C,), samples of each class.
    """

    codes: NDArray[np.int64]
    names: list[int] | list[str]
    sizes: NDArray[np.int64]


def unit_rows(embeddings: ArrayLike, dtype: type[np.float64] | None = None) -> Floats:
    """Check embeddings and scale each row to length one.

    Args:
        embeddings: array or tensor (N, D) of finite numbers without zero rows.
        dtype: the type of the result; by default float64 stays and all else becomes float32.

    Returns:
        A new array (N, D).

    Raises:
        InputError: not two-dimensional, empty, not numeric, not finite, or a row of zeros.
    """
    array = _as_array(embeddings)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"embeddings have shape {array.shape}; they must be (samples, dimensions) and not empty")
    if array.dtype.kind not in "fiu":
        raise InputError(f"embeddings have type {array.dtype}; they must be real numbers")
    wide = dtype is np.float64 or array.dtype == np.float64
    rows: Floats = array.astype(np.float64) if wide else array.astype(np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(f"embeddings hold NaN or infinity (first in row {bad}); drop or re-encode that row")
    # Dividing by the largest entry first keeps the squares of very small or large rows representable.
    peak = np.abs(rows).max(axis=1, keepdims=True)
    if not peak.all():
        raise InputError(f"row {int(np.argmin(peak))} of the embeddings is all zeros: its cosine is undefined")
    rows /= peak
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def class_labels(labels: ArrayLike, samples: int) -> ClassLabels:
    """Turn integer or string labels into codes, never through floating point.

    Args:
        labels: N integers of any size, or N strings.
        samples: the N of the embeddings.

    Raises:
        InputError: wrong length or type, one class only, or no class with two samples.
    """
    raw = label_list(labels)
    if len(raw) != samples:
        raise InputError(f"{len(raw)} labels for {samples} embeddings; give one label per row")
    kinds = {type(label) for label in raw}
    if not (kinds <= {int} or kinds <= {str}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"labels must all be integers or all be strings; these hold {found}")
    names = sorted(set(raw))
    position = {name: code for code, name in enumerate(names)}
    codes = np.fromiter((position[label] for label in raw), np.int64, len(raw))
    sizes = np.bincount(codes, minlength=len(names)).astype(np.int64)
    if len(names) < 2:
        raise InputError(f"all samples carry the label {names[0]!r}; at least two classes are needed")
    if sizes.max() < 2:
        raise InputError("every class has one sample only: there is no positive pair to find")
    return ClassLabels(codes, names, sizes)


def label_list(labels: ArrayLike) -> list[Any]:
    """The labels as Python objects: a list of large integers would turn float on its way through numpy."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1:
            raise InputError(f"labels have shape {labels.shape}; they must be one-dimensional")
        return list(labels.tolist())
    return [item.item() if isinstance(item, np.generic | torch.Tensor) else item for item in labels]


def _as_array(values: ArrayLike) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        return np.asarray(
            (values.float() if values.is_floating_point() and values.dtype != torch.float64 else values).numpy()
        )
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError("embeddings have rows of different lengths") from error

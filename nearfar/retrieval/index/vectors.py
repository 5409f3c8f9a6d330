"""From what users pass to float32 matrices that FAISS may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nearfar.errors import DimensionMismatchError, InputError

Float32 = npt.NDArray[np.float32]
_BLOCK_ROWS = 1 << 16  # rows normalised at a time, which bounds the float64 copy


def as_matrix(
    vectors: Any, dimension: int, what: str, ids: Sequence[str] | None = None, single: bool = False
) -> Float32:
    """Return `vectors` as a finite, contiguous float32 matrix of shape (rows, dimension).

    Args:
        vectors: numpy array or torch tensor, (rows, dimension), of floats (16, 32 or 64 bits) or integers.
        dimension: the index's dimension.
        what: "vectors" or "queries", for messages.
        ids: names the row at fault in messages.
        single: accept one vector (dimension,) as a matrix of one row.

    Raises:
        DimensionMismatchError: another dimension.
        InputError: not a matrix of numbers, or a value that is not finite as float32.
    """
    array = _as_array(vectors, what)
    if array.ndim == 1 and single:
        array = array[None]  # (1, dimension)
    if array.ndim != 2:
        raise InputError(f"{what} must be a matrix (rows, {dimension}), got shape {array.shape}")
    if array.shape[1] != dimension:
        raise DimensionMismatchError(
            f"{what} have dimension {array.shape[1]} and the index has dimension {dimension}; "
            "encode with the model that filled the index"
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(matrix).all(axis=1)  # (rows,)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(f"{what}: {_name(row, ids)} holds NaN or infinity; remove or mend it")
    return matrix


def _as_array(vectors: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(vectors, torch.Tensor):
        tensor = vectors.detach().cpu()
        # numpy has no bfloat16
        array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        try:
            array = np.asarray(vectors)
        except ValueError as error:
            raise InputError(f"{what} must be a matrix of numbers: {error}") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"{what} must hold real numbers, got dtype {array.dtype}")
    return array


def unit_rows(matrix: Float32, what: str, ids: Sequence[str] | None = None) -> Float32:
    """Return the rows divided by their Euclidean norm (computed in float64, so large values do not overflow).

    Raises:
        InputError: a row is zero, so it has no direction.
    """
    unit = np.empty_like(matrix)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        block = matrix[start : start + _BLOCK_ROWS].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))  # (rows,)
        if not norms.all():
            row = start + int(np.argmin(norms))
            raise InputError(
                f"{what}: {_name(row, ids)} is a zero vector, which has no cosine; leave it out "
                "(an encoder gives one for an empty text or one without a known word)"
            )
        unit[start : start + _BLOCK_ROWS] = block / norms[:, None]
    return unit


def _name(row: int, ids: Sequence[str] | None) -> str:
    named = ids is not None and not isinstance(ids, str) and row < len(ids)
    return f"row {row} (id {ids[row]!r})" if named and ids is not None else f"row {row}"

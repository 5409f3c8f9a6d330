"""Row numbers on their way from the data set to the loss, and the classes of its rows.

sentence-transformers' trainer takes every column but the label for text. The row column is therefore taken out by the
collator and put among the inputs of the first text column, where the loss finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nearfar.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

ROW = "nearfar_row"
_LABELS = ("label", "labels", "score", "scores")  # sentence-transformers' names, first one wins


def with_rows(dataset: Dataset) -> Dataset:
    """The data set with its row numbers as a column."""
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise InputError(
            f"mining needs one Dataset with random access; the training data is a {type(dataset).__name__}"
        )
    if ROW in dataset.column_names:
        dataset = dataset.remove_columns(ROW)
    return dataset.add_column(ROW, list(range(len(dataset))))


class RowCollator:
    """A collator that keeps the row numbers of a batch.

    Args:
        collate: makes a batch of what is left of the rows; sentence-transformers' collator.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    @property
    def valid_label_columns(self) -> list[str]:
        """As the collator has it; the trainer asks for it."""
        return list(getattr(self.collate, "valid_label_columns", _LABELS))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, with row numbers among the inputs of its first text column where the rows have them."""
        kept = [{name: value for name, value in row.items() if name != ROW} for row in rows]
        batch: dict[str, Any] = self.collate(kept)
        if rows and ROW in rows[0]:
            first = next(name for name in kept[0] if name not in (*self.valid_label_columns, "dataset_name"))
            batch[f"{first}_{ROW}"] = torch.tensor([row[ROW] for row in rows])
        return batch


def take_rows(features: list[dict[str, Tensor]]) -> Tensor | None:
    """Remove the row numbers (B,) from the inputs of a batch; None where there are none."""
    return features[0].pop(ROW, None) if features else None


def text_columns(dataset: Dataset) -> list[str]:
    """Names of the text columns, in their order."""
    return [name for name in dataset.column_names if name not in (*_LABELS, ROW)]


def batch_classes(dataset: Dataset, label_columns: list[str] | None) -> tuple[NDArray[Any], bool] | None:
    """The class of every row, and whether rows are pairs; None for a data set without row numbers.

    Integer labels are classes. Otherwise rows with the same document, the second text, are of one class.

    Raises:
        InputError: for single texts without integer labels.
    """
    if ROW not in dataset.column_names:
        return None
    names = label_columns or list(_LABELS)
    label = next((name for name in names if name in dataset.column_names), None)
    texts = [name for name in dataset.column_names if name not in (label, ROW)]
    is_pairs = len(texts) > 1
    if label is not None:
        values = np.asarray(dataset[label])
        if values.dtype.kind in "iu" and values.ndim == 1:
            return values, is_pairs
    if not is_pairs:
        raise InputError(
            f"mining needs classes: the column {texts[0]!r} stands alone; add a column of integers named label"
        )
    return np.asarray(dataset[texts[1]], dtype=object).astype(str), is_pairs

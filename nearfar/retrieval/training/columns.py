"""Training data as the columns that sentence-transformers' trainer reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nearfar.data import LabelledTexts, TrainingPairs
from nearfar.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_TUPLE_COLUMNS = ("query", "document")  # further texts of an n-tuple are negatives
_HASHED_ROWS = 10_000  # at a time


def as_columns(train: Any, with_labels: bool) -> Dataset:
    """A ``datasets.Dataset`` with text columns in the order the loss expects, and ``label`` last.

    Args:
        train: pairs, labelled texts, a list of n-tuples of texts (query, document, negatives ...), or a ``Dataset``,
            which is taken as it is.
        with_labels: keep the class of each pair as an integer ``label``. Losses of sentence-transformers would read
            it as a score.

    Raises:
        InputError: for empty data, tuples of unequal length, or a type that is none of these.
    """
    from datasets import Dataset

    if isinstance(train, Dataset):
        dataset = train
    elif isinstance(train, TrainingPairs):
        dataset = Dataset.from_dict(_pair_columns(train, with_labels))
    elif isinstance(train, LabelledTexts):
        dataset = Dataset.from_dict({"text": train.texts, "label": class_numbers(train.labels)})
    else:
        dataset = Dataset.from_dict(_tuple_columns(train))
    if len(dataset) == 0:
        raise InputError("the training data is empty; give at least one pair or labelled text")
    return dataset


def describe_data(dataset: Any) -> dict[str, Any]:
    """Rows, columns and a hash of the content: what a resumed run checks. By name when there are several data sets."""
    if isinstance(dataset, dict):
        return {name: describe_data(each) for name, each in dataset.items()}
    digest = hashlib.sha256()
    for first in range(0, len(dataset), _HASHED_ROWS):
        digest.update(json.dumps(dataset[first : first + _HASHED_ROWS], default=repr).encode())
    return {"rows": len(dataset), "columns": list(dataset.column_names), "sha256": digest.hexdigest()}


def class_numbers(labels: Iterable[str]) -> list[int]:
    """Labels as integers in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def _pair_columns(train: TrainingPairs, with_labels: bool) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"query": train.queries, "document": train.documents}
    if with_labels:
        columns["label"] = class_numbers(train.labels)
    return columns


def _tuple_columns(train: Any) -> dict[str, list[Any]]:
    if not isinstance(train, Sequence) or isinstance(train, str):
        raise InputError(
            f"train is a {type(train).__name__}; give TrainingPairs, LabelledTexts, a list of text tuples, "
            "or a datasets.Dataset"
        )
    widths = {len(row) for row in train if not isinstance(row, str)}
    if len(widths) > 1 or any(isinstance(row, str) for row in train) or (widths and min(widths) < 2):
        raise InputError(
            "train is a list; each entry must be a tuple of texts (query, document, negatives ...), all of one length"
        )
    width = widths.pop() if widths else len(_TUPLE_COLUMNS)
    names = [*_TUPLE_COLUMNS, *(f"negative_{i}" for i in range(1, width - 1))]
    return {name: [row[i] for row in train] for i, name in enumerate(names)}

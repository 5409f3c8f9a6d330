"""Training data as the columns that sentence-transformers' trainer reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nearfar.data import LabelledTexts, TrainingPairs
from nearfar.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_TUPLE_COLUMNS = ("query", "document")  # further texts of an n-tuple are negatives


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

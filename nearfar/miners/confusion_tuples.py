"""CFCD's hard negative sampling: https://arxiv.org/abs/2308.04008 (Zhu et al., ICCV 2023).

Tuples whose negatives are what a classifier, trained first, took for the anchor's class, or its class for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from nearfar.errors import InputError
from nearfar.miners.class_rows import ClassRows

Integers = NDArray[np.int64]

# How often a negative is hard (official code): of the rows taken for the anchor's class, with an anchor that was
# classified rightly and with one that was not; and of the class that the anchor was taken for.
_SHARE_FALSE_OF_TRUE, _SHARE_FALSE, _SHARE_TAKEN_FOR = 0.5, 0.33, 0.5


class ConfusionTupleSampler(Sampler[list[int]]):
    """A batch sampler: every batch is a number of tuples of an anchor, a positive and negatives, in this order.

    With TP_c the rows of class c that are predicted as c, and FP_c the rows of other classes that are:

    - An anchor of class c that is in TP_c gets another row of c as positive; each of its negatives is, with
      probability 0.5, a row of FP_c.
    - Any other anchor gets a positive from TP_c, if there is one; each of its negatives is, with probability 0.33, a
      row of FP_c, else with probability 0.5 a row of the class that the anchor was taken for.
    - The other negatives are rows of different random classes.

    An epoch takes every row of a class of at least two as anchor once, in random order; the last batch may be short.
    Rows are drawn from shuffled pools that are refilled when exhausted; no row is twice in a tuple.

    Args:
        labels: a label a row, integers or strings (rows,).
        predictions: what the classifier says of each row, labels of the same kind (rows,).
        tuples_per_batch: tuples in a batch; 16 (ours).
        negatives: negatives of a tuple; 6 (official code).
        seed: of all draws. No global random generator is read or moved.

    Attributes:
        tuple_size: rows of a tuple, 2 + ``negatives``.
        batch_size: rows of a full batch.
        epoch: the epoch that the next iteration yields; see ``set_epoch``.

    Raises:
        InputError: labels and predictions that do not fit, no class with two rows, no more classes than negatives, or
            numbers out of range.

    Example:
        >>> from nearfar.miners import ConfusionTupleSampler
        >>> labels, predictions = [0, 0, 1, 1, 2, 2], [0, 0, 1, 0, 2, 2]
        >>> sampler = ConfusionTupleSampler(labels, predictions, tuples_per_batch=2, negatives=2)
        >>> [len(batch) for batch in sampler]
        [8, 8, 8]

    Source: the rules of the official sampler. There a pass ends with its pools, and classes are drawn
    before anchors; here every row is an anchor once, so that an epoch has a known length.
    """

    def __init__(
        self, labels: Any, predictions: Any, tuples_per_batch: int = 16, negatives: int = 6, *, seed: int = 0
    ) -> None:
        found, said = _as_array(labels), _as_array(predictions)
        self._classes = ClassRows(found)
        if said.shape != found.shape or said.dtype.kind != found.dtype.kind:
            raise InputError(
                f"predictions has shape {said.shape} and dtype {said.dtype}; labels has {found.shape} and "
                f"{found.dtype}: give one predicted label a row"
            )
        numbers = (("tuples_per_batch", tuples_per_batch, 1), ("negatives", negatives, 1), ("seed", seed, 0))
        for name, value, lowest in numbers:
            if value < lowest:
                raise InputError(f"{name}={value!r} must be {lowest} or more")
        if len(self._classes) <= negatives:
            raise InputError(
                f"negatives={negatives} needs {negatives + 1} classes, to be of different ones; there are "
                f"{len(self._classes)}: take fewer"
            )
        if not (self._classes.sizes > 1).any():
            raise InputError("no class has two rows, so no anchor has a positive: give more rows a class")
        place = np.searchsorted(self._classes.labels, said).clip(max=len(self._classes) - 1)
        # A predicted class that no row has is none of the classes here.
        self._predicted: Integers = np.where(self._classes.labels[place] == said, place, -1)
        self.tuples_per_batch, self.negatives, self.seed, self.epoch = tuples_per_batch, negatives, seed, 0
        self.tuple_size = 2 + negatives
        self.batch_size, self.drop_last = tuples_per_batch * self.tuple_size, False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-int(self._classes.sizes[self._classes.sizes > 1].sum()) // self.tuples_per_batch)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        classes, predicted = self._classes.classes, self._predicted
        right = classes == predicted
        count = len(self._classes)
        pools = {
            "of": _Pools(classes, np.ones_like(right), count, random),
            "true": _Pools(classes, right, count, random),
            "false": _Pools(predicted, ~right & (predicted >= 0), count, random),
        }
        anchors = random.permutation(np.flatnonzero(self._classes.sizes[classes] > 1))
        for start in range(0, len(anchors), self.tuples_per_batch):
            part = anchors[start : start + self.tuples_per_batch].tolist()
            yield [row for anchor in part for row in self._tuple(anchor, pools, random)]

    def _tuple(self, anchor: int, pools: dict[str, _Pools], random: np.random.Generator) -> list[int]:
        own, taken_for = int(self._classes.classes[anchor]), int(self._predicted[anchor])
        rows = [anchor]
        positive = None if own == taken_for else pools["true"].draw(own, rows)
        if positive is None:
            positive = pools["of"].draw(own, rows)
        assert positive is not None  # anchors come from classes of at least two
        rows.append(positive)
        others = [c for c in random.permutation(len(self._classes)).tolist() if c != own]
        for _ in range(self.negatives):
            hard = self._hard(own, taken_for, rows, pools, random)
            rows.append(_of_another_class(others, rows, pools["of"]) if hard is None else hard)
        return rows

    def _hard(
        self, own: int, taken_for: int, rows: list[int], pools: dict[str, _Pools], random: np.random.Generator
    ) -> int | None:
        """A confused negative, or None."""
        if random.random() < (_SHARE_FALSE_OF_TRUE if own == taken_for else _SHARE_FALSE):
            return pools["false"].draw(own, rows)
        if own != taken_for and taken_for >= 0 and random.random() < _SHARE_TAKEN_FOR:
            return pools["of"].draw(taken_for, rows)
        return None


class _Pools:
    """Rows by class, each drawn once before any comes again.

    Args:
        classes: class of each row, (rows,).
        chosen: which rows count, boolean (rows,).
        count: number of classes.
        random: shuffles them.
    """

    def __init__(self, classes: Integers, chosen: NDArray[np.bool_], count: int, random: np.random.Generator) -> None:
        rows = np.flatnonzero(chosen)
        order = np.argsort(classes[rows], kind="stable")
        edges = np.searchsorted(classes[rows][order], np.arange(count + 1))
        self._rows, self._edges, self._random = rows[order], edges, random
        self._left: dict[int, list[int]] = {}

    def draw(self, label: int, taken: list[int]) -> int | None:
        """A row of the class that is not ``taken`` already; None where there is none."""
        rows = self._rows[self._edges[label] : self._edges[label + 1]]
        left = self._left.get(label, [])
        if all(row in taken for row in left):
            left = self._left[label] = self._random.permutation(rows).tolist()
        for place in range(len(left) - 1, -1, -1):
            if left[place] not in taken:
                return left.pop(place)
        return None


def _of_another_class(others: list[int], rows: list[int], pool: _Pools) -> int:
    """A row of the first of the other classes that has one left; uses that class up."""
    while True:  # there are at least as many other classes as negatives
        row = pool.draw(others.pop(), rows)
        if row is not None:
            return row


def _as_array(labels: Any) -> NDArray[Any]:
    return labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)

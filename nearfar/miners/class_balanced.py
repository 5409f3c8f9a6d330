"""Batches of P classes with K samples each (P x K sampling, as in https://arxiv.org/abs/1703.07737)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import Sampler

from nearfar.errors import InputError

Integers = NDArray[np.int64]

# Keep apart the random numbers that one seed gives.
_CLASS_ORDER, _ROW_ORDER, _FILLING = 0, 1, 2


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """A batch sampler: every batch has P different classes and K rows of each.

    The plan is one endless list of batches, fixed by the seed alone, of which an epoch is the next stretch. It goes
    round and round the classes: in a round each has its turn, in random order, and the round's last batch is filled
    up with classes that had theirs. A turn takes the next K rows of the class; when they run out, those rows are
    shuffled anew. So all rows of a class have been in a batch after size / K rounds, a class of any size, and over the
    epochs every row is used.

    A class with fewer than K rows repeats them, each about equally often; in other classes no row is twice in a
    batch. A row with several labels may stand for any of them; when two of its classes share a batch the second takes
    another row if it has one.

    Several processes make the same plan, and process r of W takes batches r, r + W, r + 2W, ... of every epoch.
    Accelerate, and with it sentence-transformers' trainer, shares out batches itself: leave ``world_size`` at 1 there.

    Args:
        labels: a label a row, integers or strings (rows,); or several: multi-hot (rows, L), or a list of sequences.
            A row without any label is in no batch.
        classes_per_batch: P.
        samples_per_class: K.
        seed: of the plan. No global random generator is read or moved.
        batches: batches per epoch, of all processes together; None for as many as hold the number of rows. Rounded
            down to a multiple of the number of processes, though each has one at least.
        rank: which process this is; None to ask ``torch.distributed``.
        world_size: number of processes; None to ask ``torch.distributed``.

    Attributes:
        batch_size: P x K.
        drop_last: True, for wrappers that ask: all batches are full.
        epoch: the epoch that the next iteration yields; see ``set_epoch``.

    Raises:
        InputError: no rows, fewer classes than P, or numbers out of range.

    Example:
        >>> from nearfar.miners import ClassBalancedBatchSampler
        >>> labels = ["a", "a", "b", "b", "c", "c", "c"]
        >>> sampler = ClassBalancedBatchSampler(labels, classes_per_batch=2, samples_per_class=2)
        >>> len(sampler), sampler.batch_size
        (2, 4)
        >>> [sorted(labels[row] for row in batch) for batch in sampler]
        [['a', 'a', 'c', 'c'], ['b', 'b', 'c', 'c']]

        With sentence-transformers' trainer: ``batch_sampler=ClassBalancedBatchSampler.factory(samples_per_class=4)``.

    Source: as pytorch-metric-learning's ``MPerClassSampler``, which draws from NumPy's global generator, knows no
    epochs or processes, and gives single rows.
    """

    def __init__(
        self,
        labels: Any,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        batches: int | None = None,
        rank: int | None = 0,
        world_size: int | None = 1,
    ) -> None:
        self._rows, self._starts, count = _rows_by_class(labels)
        for name, value in (("classes_per_batch", classes_per_batch), ("samples_per_class", samples_per_class)):
            _check_whole(name, value, 1)
        _check_whole("seed", seed, 0)
        classes = len(self._starts) - 1
        if classes_per_batch > classes:
            raise InputError(
                f"classes_per_batch={classes_per_batch} is more than the {classes} classes of the data: a batch holds "
                "no class twice; take fewer"
            )
        self.classes_per_batch, self.samples_per_class, self.seed = classes_per_batch, samples_per_class, seed
        self.batch_size, self.drop_last = classes_per_batch * samples_per_class, True
        self.batches = math.ceil(count / self.batch_size) if batches is None else _check_whole("batches", batches, 1)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._has_shared_rows = len(np.unique(self._rows)) < len(self._rows)
        self._orders: dict[tuple[int, int], tuple[int, Integers]] = {}
        self._place()

    @classmethod
    def factory(
        cls, samples_per_class: int, *, label_column: str | None = None, batches: int | None = None
    ) -> Callable[..., ClassBalancedBatchSampler]:
        """A factory for the argument ``batch_sampler`` of sentence-transformers' trainer.

        The trainer gives it the data set, the batch size and its seed, for training and for evaluation data. The
        number of classes in a batch is the batch size over K, or, where the data have fewer classes, all of them.

        Args:
            samples_per_class: K; the trainer's batch size must be a multiple of it.
            label_column: name of the column of labels; None for the first that the trainer knows as one.
            batches: see the class.

        Raises:
            InputError: when the trainer calls it, for a data set without labels or a batch size that is no multiple.
        """
        return functools.partial(
            cls._from_dataset, samples_per_class=samples_per_class, label_column=label_column, batches=batches
        )

    @classmethod
    def _from_dataset(
        cls,
        dataset: Any,
        batch_size: int,
        drop_last: bool = True,
        valid_label_columns: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        samples_per_class: int,
        label_column: str | None,
        batches: int | None,
    ) -> ClassBalancedBatchSampler:
        known = [label_column] if label_column is not None else list(valid_label_columns or ("label",))
        found = [name for name in known if name in dataset.column_names]
        if not found:
            raise InputError(
                f"the data set has no column {' or '.join(known)} to take classes from; it has "
                f"{', '.join(dataset.column_names)}"
            )
        if batch_size % samples_per_class:
            raise InputError(f"the batch size {batch_size} is no multiple of samples_per_class={samples_per_class}")
        labels = list(dataset[found[0]])
        classes = len(_rows_by_class(labels)[1]) - 1
        per_batch = min(classes, batch_size // samples_per_class)
        return cls(labels, per_batch, samples_per_class, seed=seed, batches=batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = _check_whole("epoch", epoch, 0)

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return max(1, self.batches // self._place()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self._place()
        first = self.epoch * len(self) * world_size
        return (self._batch(first + rank + step * world_size) for step in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        joined = dist.is_available() and dist.is_initialized()
        world_size = (dist.get_world_size() if joined else 1) if self.world_size is None else self.world_size
        rank = (dist.get_rank() if joined else 0) if self.rank is None else self.rank
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank} must lie in [0, {world_size}), the number of processes (world_size)")
        return rank, world_size

    def _batch(self, number: int) -> list[int]:
        """A batch of the endless list."""
        classes, width = len(self._starts) - 1, self.classes_per_batch
        turn, within = divmod(number, math.ceil(classes / width))
        order = self._order(_CLASS_ORDER, 0, turn, classes)
        chosen: list[int] = []
        for label in order[within * width : (within + 1) * width].tolist():
            passes, place = divmod(turn, math.ceil(self._size(label) / self.samples_per_class))
            order_of_rows = self._order(_ROW_ORDER, label, passes, self._size(label))
            chosen += self._take(label, np.roll(order_of_rows, -place * self.samples_per_class), chosen)
        # The last batch of a round is filled up with the first classes of the round, which are not in it.
        for label in order[: width - len(chosen) // self.samples_per_class].tolist():
            random = np.random.default_rng((self.seed, _FILLING, number, label))
            chosen += self._take(label, random.permutation(self._size(label)), chosen)
        return chosen

    def _take(self, label: int, order: Integers, taken: list[int]) -> list[int]:
        """The first K rows of a class in this order, those of the batch last; repeated when there are too few."""
        first = self._starts[label]
        if self._has_shared_rows:
            rows = self._rows[first + order]
            rows = np.concatenate([rows[~np.isin(rows, taken)], rows[np.isin(rows, taken)]])
        else:
            rows = self._rows[first + order[: self.samples_per_class]]
        found: list[int] = np.resize(rows, self.samples_per_class).tolist()
        return found

    def _size(self, label: int) -> int:
        return int(self._starts[label + 1] - self._starts[label])

    def _order(self, kind: int, label: int, number: int, length: int) -> Integers:
        """The order of classes in a round, or of a class's rows until they run out; remembered until the next."""
        remembered, order = self._orders.get((kind, label), (-1, None))
        if order is None or remembered != number:
            order = np.random.default_rng((self.seed, kind, number, label)).permutation(length)
            self._orders[kind, label] = number, order
        return order


def _rows_by_class(labels: Any) -> tuple[Integers, Integers, int]:
    """Rows class after class, where each class begins (one more at the end), and how many rows there are."""
    if isinstance(labels, torch.Tensor):
        labels = labels.cpu().numpy()
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        if labels and isinstance(labels[0], list | tuple | set | frozenset | np.ndarray | torch.Tensor):
            return _rows_of_lists(labels)
        labels = np.array(labels)
    if not len(labels) or labels.ndim > 2 or (labels.ndim == 1 and labels.dtype.kind not in "iuUO"):
        raise InputError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; a balanced batch needs an integer or string a "
            "row, or several as multi-hot (rows, L) or as a list of sequences"
        )
    if labels.ndim == 2:
        classes, rows = np.nonzero(labels.T)
    else:
        _, classes = np.unique(labels, return_inverse=True)
        rows = np.arange(len(labels))
    return _grouped(classes, rows, len(labels))


def _rows_of_lists(labels: list[Any]) -> tuple[Integers, Integers, int]:
    rows = np.repeat(np.arange(len(labels)), [len(set(each)) for each in map(_plain, labels)])
    names = np.array([name for each in labels for name in sorted(set(_plain(each)))])
    _, classes = np.unique(names, return_inverse=True)
    return _grouped(classes, rows, len(labels))


def _plain(labels: Any) -> list[Any]:
    return labels.tolist() if isinstance(labels, np.ndarray | torch.Tensor) else list(labels)


def _grouped(classes: Integers, rows: Integers, count: int) -> tuple[Integers, Integers, int]:
    sizes = np.bincount(classes)
    sizes = sizes[sizes > 0]
    return rows[np.argsort(classes, kind="stable")], np.concatenate([[0], np.cumsum(sizes)]), count


def _check_whole(name: str, value: int, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
        raise InputError(f"{name}={value!r} must be a whole number, {lowest} or more")
    return int(value)

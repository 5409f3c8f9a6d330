"""Retrieval metrics of labelled embeddings, the protocol of metric learning: leave-one-out, or queries and gallery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike, Floats, class_labels, label_list, unit_rows

_BLOCK_BYTES = 32 << 20
_FEW, _MANY = 24, 2000  # for at most so many positives, among more rivals than that, counting beats sorting


@dataclass(frozen=True)
class EmbeddingResult:
    """How well each sample finds the others of its class.

    Attributes:
        query_indices: int64 array (Q,), ascending rows of the embeddings that were queries (their class has
            another sample, or one in the gallery).
        per_query: for each metric name a float64 array (Q,), aligned with `query_indices`.
        mean: for each metric name the mean over the queries.
        singletons: int64 array, rows that have nothing to find; without a gallery they stay to be searched.
        class_count: number of distinct labels.
        class_labels: labels of the T classes that hold a query, ascending.
        per_class: for each metric name a float64 array (T,), the mean over the queries of each class.
    """

    query_indices: NDArray[np.int64]
    per_query: dict[str, NDArray[np.float64]]
    mean: dict[str, float]
    singletons: NDArray[np.int64]
    class_count: int
    class_labels: list[int] | list[str]
    per_class: dict[str, NDArray[np.float64]]


def evaluate_embeddings(
    embeddings: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    *,
    reference: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
) -> EmbeddingResult:
    """Rank all other samples, or a gallery, by cosine for each sample, and see where its class comes.

    With R samples of the query's class to find:

    - ``hit@k``: 1 when one of the first k shares the label (metric learning calls its mean Recall@K);
    - ``R-precision``: share of the first R that do;
    - ``MAP@R``: mean over the first R ranks of the precision there, counted at the hits;
    - ``MRR``: one over the rank of the first hit, exact over the whole ranking.

    Where a sample of another class has the same cosine, it is ranked first: equal scores never help, so a
    model that maps everything to one point scores nearly zero.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one here. float64 is
            computed in float64, everything else in float32.
        labels: N integers of any size, or N strings; never turned into floating point.
        ks: depths of ``hit@k``.
        reference: gallery (M, D) to search in place of the other samples. It is taken to hold other samples
            than `embeddings`: nothing is left out of it.
        reference_labels: M labels of the gallery, of the same kind as `labels`.

    Returns:
        Values for each query and their means, over all queries and within each class. Time grows with N squared (or
        N times M); memory with N (row blocks of 32 MB).

    Raises:
        InputError: malformed embeddings, a wrong number of labels, one class only, no class with two samples,
            a gallery without labels, of another dimension or without any of the classes, or a depth below 1.

    Example:
        >>> result = evaluate_embeddings([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"], ks=[1])
        >>> result.mean
        {'hit@1': 1.0, 'R-precision': 1.0, 'MAP@R': 1.0, 'MRR': 1.0}
        >>> result.singletons
        array([2])

    Source: MAP@R and R-precision from Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV
        2020.
    """
    if not len(ks) or any(int(k) != k or k < 1 for k in ks):
        raise InputError(f"ks must be positive integers, got {list(ks)}")
    if (reference is None) != (reference_labels is None):
        given, lacking = ("reference", "reference_labels")[:: 1 if reference_labels is None else -1]
        raise InputError(f"{given} is given without {lacking}; a gallery needs both")
    unit = unit_rows(embeddings)
    if reference is None:
        classes = class_labels(labels, len(unit))
        names, codes, gallery = classes.names, classes.codes, _Gallery.of(unit, classes.codes, len(classes.names), True)
    else:
        names, codes, gallery = _with_gallery(unit, labels, reference, reference_labels)
    wanted = gallery.sizes[codes] - gallery.itself  # (N,) samples to find
    queries = np.flatnonzero(wanted > 0)
    columns = [*(f"hit@{k}" for k in ks), "R-precision", "MAP@R", "MRR"]
    values = np.empty((len(queries), len(columns)))
    for row, ranks in gallery.ranks(unit, codes, queries):
        values[row] = _row_metrics(ranks, ks)
    per_query = {name: values[:, column].copy() for column, name in enumerate(columns)}
    present, of_query = np.unique(codes[queries], return_inverse=True)
    sizes = np.bincount(of_query)
    return EmbeddingResult(
        query_indices=queries,
        per_query=per_query,
        mean={name: float(column.mean()) for name, column in per_query.items()},
        singletons=np.flatnonzero(wanted == 0),
        class_count=len(np.unique(codes)),
        class_labels=[names[code] for code in present.tolist()],
        per_class={name: np.bincount(of_query, column) / sizes for name, column in per_query.items()},
    )


@dataclass(frozen=True)
class _Gallery:
    """What is searched, sorted by class.

    Attributes:
        unit: (M, D).
        order: int64 (M,), place of each row before sorting.
        sizes: int64 (C,), samples of each class.
        itself: whether the queries are these samples too, and must not find themselves.
    """

    unit: Floats
    order: NDArray[np.int64]
    sizes: NDArray[np.int64]
    itself: bool

    @classmethod
    def of(cls, unit: Floats, codes: NDArray[np.int64], classes: int, itself: bool) -> _Gallery:
        order = np.argsort(codes, kind="stable")
        return cls(unit[order], order, np.bincount(codes, minlength=classes).astype(np.int64), itself)

    def ranks(
        self, unit: Floats, codes: NDArray[np.int64], queries: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """For each query its number and the ascending 1-based ranks of the samples of its class."""
        block = max(1, _BLOCK_BYTES // (len(self.unit) * self.unit.itemsize))
        # Queries in the order of the gallery: a class mate's row has just been in the cache.
        sequence = np.argsort(codes[queries], kind="stable")
        for first in range(0, len(sequence), block):
            numbers = sequence[first : first + block]
            # A call of its own, so that one block is let go before the next is made.
            yield from self._ranks_of_block(unit, codes, numbers, queries[numbers])

    def _ranks_of_block(
        self, unit: Floats, codes: NDArray[np.int64], numbers: NDArray[np.int64], queries: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        ends = np.cumsum(self.sizes)
        for number, query, scores in zip(numbers.tolist(), queries, unit[queries] @ self.unit.T, strict=True):
            start, end = ends[codes[query]] - self.sizes[codes[query]], ends[codes[query]]
            mates = scores[start:end].copy()
            if self.itself:
                mates = mates[self.order[start:end] != query]
            scores[start:end] = -np.inf  # what is left are the rivals
            yield number, _ranks(np.sort(mates)[::-1], scores)


def _ranks(positives: Floats, scores: Floats) -> NDArray[np.int64]:
    """Ranks of descending positives among rival scores, behind those that are equal."""
    can_outrank = scores >= positives[-1]
    if len(positives) <= _FEW and np.count_nonzero(can_outrank) > _MANY:
        ahead = np.array([np.count_nonzero(scores >= positive) for positive in positives])
    else:
        rivals = np.sort(scores[np.flatnonzero(can_outrank)])  # much faster than by the mask itself
        ahead = len(rivals) - np.searchsorted(rivals, positives, side="left")
    return ahead + np.arange(1, len(positives) + 1)


def _with_gallery(
    unit: Floats, labels: ArrayLike, reference: ArrayLike | None, reference_labels: ArrayLike | None
) -> tuple[list[int] | list[str], NDArray[np.int64], _Gallery]:
    assert reference is not None
    assert reference_labels is not None
    gallery = unit_rows(reference)
    if gallery.shape[1] != unit.shape[1]:
        raise InputError(f"embeddings have {unit.shape[1]} dimensions and reference has {gallery.shape[1]}")
    own, other = label_list(labels), label_list(reference_labels)
    for name, found, rows in (("labels", own, len(unit)), ("reference_labels", other, len(gallery))):
        if len(found) != rows:
            raise InputError(f"{len(found)} {name} for {rows} rows; give one label per row")
    if not set(own) & set(other):
        raise InputError(f"no label of the embeddings (such as {own[0]!r}) is found in reference_labels")
    classes = class_labels([*own, *other], len(own) + len(other))
    codes = classes.codes[: len(own)]
    return classes.names, codes, _Gallery.of(gallery, classes.codes[len(own) :], len(classes.names), False)


def _row_metrics(ranks: NDArray[np.int64], ks: Sequence[int]) -> list[float]:
    count = len(ranks)
    within = ranks[ranks <= count]
    precision = np.arange(1, len(within) + 1) / within
    first = int(ranks[0])
    return [
        *(float(first <= k) for k in ks),
        len(within) / count,
        float(precision.sum()) / count,
        1 / first,
    ]

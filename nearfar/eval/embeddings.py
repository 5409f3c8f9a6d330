"""Leave-one-out retrieval metrics of labelled embeddings, the protocol of metric learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike, Floats, class_labels, unit_rows

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class EmbeddingResult:
    """How well each sample finds the others of its class.

    Attributes:
        query_indices: int64 array (Q,), ascending rows of the embeddings that were queries (their class has
            another sample).
        per_query: for each metric name a float64 array (Q,), aligned with `query_indices`.
        mean: for each metric name the mean over the queries.
        singletons: int64 array, rows alone in their class; they stay in the gallery but are no queries.
        class_count: number of distinct labels.
    """

    query_indices: NDArray[np.int64]
    per_query: dict[str, NDArray[np.float64]]
    mean: dict[str, float]
    singletons: NDArray[np.int64]
    class_count: int


def evaluate_embeddings(embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int] = (1, 5, 10)) -> EmbeddingResult:
    """Rank all other samples by cosine for each sample, and see where its class comes.

    With R other samples in the query's class:

    - ``hit@k``: 1 when one of the first k shares the label (metric learning calls its mean Recall@K);
    - ``R-precision``: share of the first R that do;
    - ``MAP@R``: mean over the first R ranks of the precision there, counted at the hits;
    - ``MRR``: one over the rank of the first hit, exact over the whole ranking.

    Where a sample of another class has the same cosine, it is ranked first: equal scores never help, so a
    model that maps everything to one point scores nearly zero.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows; scaled to length one here. float64 is
            computed in float64, everything else in float32.
        labels: N integers of any size, or N strings.
        ks: depths of ``hit@k``.

    Returns:
        Values for each query and their means. Time grows with N squared; memory with N (row blocks of 64 MB).

    Raises:
        InputError: malformed embeddings, a wrong number of labels, one class only, no class with two samples,
            or a depth below 1.

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
    unit = unit_rows(embeddings)
    classes = class_labels(labels, len(unit))
    alone = classes.sizes[classes.codes] == 1  # (N,)
    queries = np.flatnonzero(~alone)
    names = [*(f"hit@{k}" for k in ks), "R-precision", "MAP@R", "MRR"]
    values = np.empty((len(queries), len(names)))
    for row, ranks in enumerate(_ranks_of_class(unit, classes.codes, queries)):
        values[row] = _row_metrics(ranks, ks)
    per_query = {name: values[:, column].copy() for column, name in enumerate(names)}
    return EmbeddingResult(
        query_indices=queries,
        per_query=per_query,
        mean={name: float(column.mean()) for name, column in per_query.items()},
        singletons=np.flatnonzero(alone),
        class_count=len(classes.names),
    )


def _ranks_of_class(unit: Floats, codes: NDArray[np.int64], queries: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """For each query the ascending 1-based ranks of the other samples of its class."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    members = [order[start:end] for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True)]
    block = max(1, _BLOCK_BYTES // (len(unit) * unit.itemsize))
    for first in range(0, len(queries), block):
        rows = queries[first : first + block]
        for query, scores in zip(rows, unit[rows] @ unit.T, strict=True):  # (block, N)
            same = members[codes[query]]
            positives = np.sort(scores[same[same != query]])[::-1]  # (R,)
            scores[same] = -np.inf  # what is left are the negatives
            rivals = np.sort(scores[scores >= positives[-1]])  # those that can outrank a positive
            ahead = len(rivals) - np.searchsorted(rivals, positives, side="left")
            yield ahead + np.arange(1, len(positives) + 1)


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

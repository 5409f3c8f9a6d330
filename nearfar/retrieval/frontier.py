"""The frontier of an index: how much of the exact answer each setting finds, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.intervals import bca_interval, bootstrap_means, jackknife_means
from nearfar.eval.paired_tests import sum_over_units
from nearfar.eval.report import FrontierPoint
from nearfar.retrieval.index import structures
from nearfar.retrieval.index.vector_index import VectorIndex
from nearfar.retrieval.index.vectors import Float32, as_matrix, unit_rows

_BLOCK_ROWS = 1 << 16  # stored vectors compared at a time
_RESAMPLES = 2_000
# Two float32 sums of the same products in another order differ by this much of the largest score.
_SAME = 1e-6


def measure_frontier(
    index: VectorIndex,
    queries: Any,
    k: int = 10,
    *,
    nprobes: Sequence[int] | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> list[FrontierPoint]:
    """Measure recall and latency of an index under each of several `nprobe`.

    The truth is an exact search of the stored vectors. Of a query's k exact neighbours those count as found that are
    among the k answers; an answer whose score equals that of the k-th neighbour counts as one, since which of several
    equal ones to name is free. Latency is what one caller waits for: `VectorIndex.search` of one query at a time, on
    one thread of FAISS, every setting in turn and `repeats` times over; the first round is not timed.

    Args:
        index: an open index.
        queries: (Q, dimension) array or tensor; a few hundred give recall to about 0.01.
        k: neighbours asked for; 10 by convention.
        nprobes: lists to look into; default: the powers of two below the number of lists, the index's own default, and
            all of them. An index without inverted lists has one setting, "exact scan".
        repeats: timed rounds.
        seed: of the bootstrap intervals.

    Returns:
        A point a setting, by ascending nprobe: mean recall with its 95 % bootstrap interval over the queries, median
        and 95th percentile of the milliseconds.

    Raises:
        DimensionMismatchError: the queries have another dimension.
        InputError: an empty index, no query, a query that is not finite, or k, repeats or an nprobe below 1.

    Example:
        >>> import tempfile
        >>> vectors = np.random.default_rng(0).normal(size=(2_000, 8))
        >>> with VectorIndex.create(tempfile.mkdtemp(), dimension=8, factory="ivf") as index:
        ...     index.add(vectors, [str(row) for row in range(2_000)])
        ...     points = measure_frontier(index, vectors[:20], nprobes=[1, 51])
        >>> [point.setting for point in points], points[0].recall < points[1].recall == 1.0
        (['nprobe=1', 'nprobe=51'], True)
    """
    structures.positive_integer(repeats, "repeats")
    k = min(structures.positive_integer(k, "k"), len(index))
    if not k:
        raise InputError(f"index {str(index.path)!r} is empty; add vectors before measuring it")
    rows = as_matrix(queries, index.dimension, "queries", single=True)
    if not len(rows):
        raise InputError("queries are empty; give at least one")
    if index.metric == "cosine":
        rows = unit_rows(rows, "queries")
    settings = _settings(index, nprobes)
    exact_ids, bound = _exact(index, rows, k)
    with _one_thread():
        seconds = _seconds(index, rows, k, list(settings.values()), repeats)
    return [
        _point(setting, _recalls(index, rows, k, parameters, exact_ids, bound), taken, seed)
        for (setting, parameters), taken in zip(settings.items(), seconds, strict=True)
    ]


def _settings(index: VectorIndex, nprobes: Sequence[int] | None) -> dict[str, dict[str, Any]]:
    """Search parameters by the setting's name."""
    nlist = index.info()["nlist"]
    if nlist is None:
        if nprobes is not None:
            raise InputError(
                f"index {str(index.path)!r} has no inverted lists, so nprobes {list(nprobes)} mean nothing"
            )
        return {"exact scan": {}}
    own = structures.default_nprobe(nlist)
    if nprobes is None:
        nprobes = [*(1 << power for power in range(nlist.bit_length()) if 1 << power < nlist), own, nlist]
    chosen = sorted({structures.positive_integer(nprobe, "nprobe") for nprobe in nprobes})
    if not chosen:
        raise InputError("nprobes is empty; give at least one, or None")
    return {f"nprobe={nprobe}{' (default)' * (nprobe == own)}": {"nprobe": nprobe} for nprobe in chosen}


def _exact(index: VectorIndex, queries: Float32, k: int) -> tuple[list[set[str]], NDArray[np.float32]]:
    """Ids of each query's k exact neighbours, and the score (Q,) that the k-th of them has."""
    ids = index.ids()
    scores = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(ids), _BLOCK_ROWS):
        block = index.vectors(ids[start : start + _BLOCK_ROWS])
        found, places = structures.search_flat(
            block, queries, min(k, len(block)), structures.check_metric(index.metric)
        )
        scores = np.concatenate([scores, found], axis=1)  # (Q, up to 2 k)
        rows = np.concatenate([rows, places + start], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return [{ids[row] for row in found} for found in rows.tolist()], scores[:, -1]


def _recalls(
    index: VectorIndex,
    queries: Float32,
    k: int,
    parameters: dict[str, Any],
    exact_ids: list[set[str]],
    bound: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Recall of each query, (Q,)."""
    recalls = np.empty(len(queries))
    for row, answer in enumerate(index.search(queries, k, **parameters).ids.tolist()):
        found = [name for name in answer if name is not None]
        strangers = [name for name in found if name not in exact_ids[row]]
        hits = len(found) - len(strangers)
        if strangers:
            scores = _scores(index.vectors(strangers), queries[row], index.metric)
            hits += int((scores >= bound[row] - _SAME * max(1.0, abs(float(bound[row])))).sum())
        recalls[row] = hits / k
    return recalls


def _scores(vectors: Float32, query: Float32, metric: str) -> NDArray[np.float64]:
    wide, target = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(-((wide - target) ** 2).sum(axis=1))
    return np.asarray(wide @ target)


def _seconds(
    index: VectorIndex, queries: Float32, k: int, settings: list[dict[str, Any]], repeats: int
) -> list[NDArray[np.float64]]:
    """Seconds of every search of one query, a row a setting: (repeats * Q,)."""
    taken: list[list[float]] = [[] for _ in settings]
    for turn in range(repeats + 1):
        for times, parameters in zip(taken, settings, strict=True):
            for query in queries:
                start = time.perf_counter()
                index.search(query, k, **parameters)
                if turn:
                    times.append(time.perf_counter() - start)
    return [np.array(times) for times in taken]


def _point(setting: str, recalls: NDArray[np.float64], seconds: NDArray[np.float64], seed: int) -> FrontierPoint:
    mean = float(recalls.mean())
    interval = None
    if len(recalls) > 1:
        units = sum_over_units(recalls[:, None], np.arange(len(recalls)))
        replicates = bootstrap_means(units, _RESAMPLES, seed)[:, 0]
        interval = bca_interval(mean, replicates, jackknife_means(units.sums[:, 0], units.sizes), 0.95)
    median, slow = (1e3 * float(np.quantile(seconds, share)) for share in (0.5, 0.95))
    return FrontierPoint(setting, mean, median, p95=slow, interval=interval)


@contextmanager
def _one_thread() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)

"""FAISS: exact scans, inverted files, and reading and writing them with limits."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from nearfar.errors import DataFileError, IndexCorruptError, InputError, UnknownNameError
from nearfar.retrieval.index.manifest import Factory, Metric
from nearfar.retrieval.index.results import Rows
from nearfar.retrieval.index.vectors import Float32

METRICS: tuple[Metric, ...] = ("cosine", "inner_product", "l2")
FACTORIES: tuple[Factory, ...] = ("flat", "ivf", "auto")
AUTO_IVF_ROWS = 50_000  # below, an exact scan answers in about a millisecond
MIN_IVF_ROWS = 1_000  # below, an inverted file saves nothing
_POINTS_PER_LIST = 39  # FAISS warns of poor centroids with fewer training points than this for each list
_TRAIN_POINTS_PER_LIST = 64  # more make training slower and recall no better
_TRAINING_SEED = 1234  # FAISS's own default, fixed here so that a build can be repeated

_read_limit = Lock()  # the byte limit is one global of FAISS


def check_metric(metric: str) -> Metric:
    """Return `metric`, or raise `UnknownNameError`."""
    for name in METRICS:
        if name == metric:
            return name
    raise UnknownNameError("metric", metric, METRICS)


def check_factory(factory: str) -> Factory:
    """Return `factory`, or raise `UnknownNameError`."""
    for name in FACTORIES:
        if name == factory:
            return name
    raise UnknownNameError("factory", factory, FACTORIES)


def wants_ivf(factory: Factory, rows: int) -> bool:
    """Whether an add of `rows` vectors becomes an inverted file; else it is scanned exactly."""
    floor = {"flat": math.inf, "ivf": MIN_IVF_ROWS, "auto": AUTO_IVF_ROWS}[factory]
    return rows >= floor


def choose_nlist(rows: int) -> int:
    """Return about 4 sqrt(rows) lists, fewer where that would leave too few training points for each."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // _POINTS_PER_LIST))


def default_nprobe(nlist: int) -> int:
    """Return the lists looked into for a query: sqrt(nlist), at least 8."""
    return min(nlist, max(8, math.ceil(math.sqrt(nlist))))


def faiss_metric(metric: Metric) -> int:
    """The FAISS metric; cosine is the inner product of unit vectors."""
    import faiss

    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def train_ivf(vectors: Float32, metric: Metric) -> Any:
    """Train an empty ``IVF,Flat`` index on (rows, dimension) vectors."""
    import faiss

    nlist = choose_nlist(len(vectors))
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{nlist},Flat", faiss_metric(metric))
    index.cp.seed = _TRAINING_SEED
    index.cp.max_points_per_centroid = _TRAIN_POINTS_PER_LIST
    index.train(vectors)
    return index


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index; a refusal of the disk becomes a `DataFileError`."""
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise DataFileError(path, f"FAISS could not write it, is the disk full? ({_short(error)})") from error


def read_faiss(path: Path, size: int, rows: int, dimension: int, metric: Metric) -> Any:
    """Read an inverted file of at most `size` bytes and check that it is what the manifest says.

    Raises:
        IndexCorruptError: FAISS refuses the file, or it holds something else.
    """
    import faiss

    with _read_limit:
        before = faiss.get_deserialization_vector_byte_limit()
        # A damaged length field must not make FAISS allocate what the file cannot hold. The limit is exclusive
        # and FAISS divides it by the size of the elements it reads, whence the small allowance.
        faiss.set_deserialization_vector_byte_limit(size + 64)
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise IndexCorruptError(
                f"{path}: FAISS cannot read it ({_short(error)}); restore it or build the index again"
            ) from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
    is_ivf = isinstance(index, faiss.IndexIVFFlat)
    if not is_ivf or (index.ntotal, index.d, index.metric_type) != (rows, dimension, faiss_metric(metric)):
        raise IndexCorruptError(
            f"{path}: holds {type(index).__name__} with {index.ntotal} vectors of dimension {index.d} instead of "
            f"an inverted file with {rows} of dimension {dimension}; build the index again"
        )
    return index


def _short(error: Exception) -> str:
    return str(error).splitlines()[0].rsplit("Error: ", 1)[-1][:200]


def check_parameters(parameters: dict[str, Any]) -> int | None:
    """Return `nprobe` of a call's search parameters, or None for the default.

    Raises:
        UnknownNameError: a name other than nprobe.
        InputError: nprobe is not a positive integer.
    """
    for name in parameters:
        if name != "nprobe":
            raise UnknownNameError("search parameter", name, ["nprobe"])
    nprobe = parameters.get("nprobe")
    if nprobe is None:
        return None
    return positive_integer(nprobe, "nprobe")


def positive_integer(value: Any, name: str) -> int:
    """Return `value` as an int of at least 1, or raise `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def search_flat(vectors: Float32, queries: Float32, k: int, metric: Metric) -> tuple[Float32, Rows]:
    """Scan all (n, d) vectors for each of (Q, d) queries: scores and rows, (Q, k)."""
    import faiss

    scores, rows = _for_numpy(faiss, "knn")(queries, vectors, k, metric=faiss_metric(metric))
    return _as_scores(scores, rows, metric)


def search_ivf(index: Any, queries: Float32, k: int, metric: Metric, nprobe: int | None) -> tuple[Float32, Rows]:
    """Search an inverted file: scores and rows, (Q, k); row -1 where fewer than k were found."""
    import faiss

    chosen = default_nprobe(index.nlist) if nprobe is None else min(nprobe, index.nlist)
    # parameters of the call, not of the index: threads with other parameters may search it at the same time
    parameters: Any = faiss.SearchParametersIVF
    scores, rows = _for_numpy(index, "search")(queries, k, params=parameters(nprobe=chosen))
    return _as_scores(scores, rows, metric)


def _for_numpy(owner: Any, name: str) -> Any:
    """FAISS's own function, also where `faiss.contrib.torch_utils` has put one for torch in its place.

    pytorch-metric-learning imports that module. Its functions take no search parameters and no memory-mapped arrays.
    """
    return getattr(owner, f"{name}_numpy", None) or getattr(owner, name)


def _as_scores(distances: Float32, rows: Rows, metric: Metric) -> tuple[Float32, Rows]:
    """Make larger better for every metric and mark what was not found with -inf."""
    scores = -distances if metric == "l2" else distances
    scores[rows < 0] = -np.inf
    return scores, rows

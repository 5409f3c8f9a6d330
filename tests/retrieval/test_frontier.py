"""Recall against raw FAISS and brute force; latency by a clock that the test sets."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from nearfar.errors import DimensionMismatchError, InputError
from nearfar.retrieval import VectorIndex, frontier, measure_frontier
from nearfar.retrieval.index.structures import default_nprobe

ROWS, DIMENSION, QUERIES = 3_000, 16, 40


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, DIMENSION))
    drawn = centres[rng.integers(0, 30, ROWS + QUERIES)] + 0.7 * rng.normal(size=(ROWS + QUERIES, DIMENSION))
    return drawn[:ROWS].astype(np.float32), drawn[ROWS:].astype(np.float32)


def made(folder, vectors, metric="cosine", factory="ivf", parts=1):
    index = VectorIndex.create(
        folder / f"{metric}-{factory}", dimension=vectors.shape[1], metric=metric, factory=factory
    )
    for number, part in enumerate(np.array_split(vectors, parts)):
        index.add(part, [f"{number}-{row}" for row in range(len(part))])
    return index


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_recall_is_that_of_raw_faiss(tmp_path, data, metric):
    vectors, queries = data
    rows, wanted = vectors.copy(), queries.copy()
    if metric == "cosine":
        faiss.normalize_L2(rows)
        faiss.normalize_L2(wanted)
    with made(tmp_path, vectors, metric) as index:
        nlist = index.info()["nlist"]
        points = measure_frontier(index, queries, 10, nprobes=[1, 4, nlist], repeats=1)
        # The other file of FAISS's is the codec, which holds no vectors.
        raw = faiss.read_index(str(max(index.path.rglob("*.faiss"), key=lambda path: path.stat().st_size)))
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    exact = faiss.knn(wanted, rows, 10, metric=kind)[1]
    for point, nprobe in zip(points, [1, 4, nlist], strict=True):
        raw.nprobe = nprobe
        found = raw.search(wanted, 10)[1]
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
        assert point.recall == pytest.approx(np.mean(shares), abs=1e-12)
        assert point.interval is not None
        assert point.interval[0] <= point.recall <= point.interval[1]
    assert points[0].recall < points[1].recall < points[2].recall == 1.0
    assert points[2].interval == (1.0, 1.0)


def test_the_default_settings(tmp_path, data):
    with made(tmp_path, data[0]) as index:
        nlist = index.info()["nlist"]
        points = measure_frontier(index, data[1][:5], repeats=1)
    own = default_nprobe(nlist)
    names = [point.setting for point in points]
    assert names == [
        f"nprobe={n}" + (" (default)" if n == own else "")
        for n in sorted({*(2**p for p in range(12) if 2**p < nlist), own, nlist})
    ]
    assert f"nprobe={own} (default)" in names


def test_several_segments_and_an_exact_one(tmp_path, data, monkeypatch):
    monkeypatch.setattr(frontier, "_BLOCK_ROWS", 700)
    with made(tmp_path, data[0], parts=2) as index:
        assert measure_frontier(index, data[1], 7, nprobes=[10_000], repeats=1)[0].recall == 1.0
    with made(tmp_path, data[0], factory="flat", parts=3) as index:
        (point,) = measure_frontier(index, data[1], repeats=1)
        assert (point.setting, point.recall) == ("exact scan", 1.0)
        with pytest.raises(InputError, match="no inverted lists"):
            measure_frontier(index, data[1], nprobes=[4])


def test_equal_neighbours_may_be_named_in_any_order(tmp_path, data):
    copies = np.repeat(data[0][:150], 20, axis=0)  # every neighbour twenty times, of which ten are asked for
    with made(tmp_path, copies) as index:
        nlist = index.info()["nlist"]
        assert measure_frontier(index, copies[::20][:30], 10, nprobes=[nlist], repeats=1)[0].recall == 1.0


def test_fewer_rows_than_neighbours(tmp_path, data):
    with made(tmp_path, data[0][:4], factory="flat") as index:
        assert measure_frontier(index, data[1], 10, repeats=1)[0].recall == 1.0
        assert measure_frontier(index, data[1][0], 10, repeats=1)[0].interval is None


def test_latency_is_the_median_of_single_searches(tmp_path, data, monkeypatch):
    now, waits = [0.0], iter(np.tile(np.arange(1, 41) / 1000, 3))  # 1 to 40 ms, a round to warm up and two timed
    threads = []
    with made(tmp_path, data[0], factory="flat") as index:
        search = index.search

        def slow(queries, k, **parameters):
            if np.ndim(queries) == 1:
                now[0] += next(waits)
                threads.append(faiss.omp_get_max_threads())
            return search(queries, k, **parameters)

        monkeypatch.setattr(index, "search", slow)
        monkeypatch.setattr(frontier.time, "perf_counter", lambda: now[0])
        before = faiss.omp_get_max_threads()
        (point,) = measure_frontier(index, data[1], repeats=2)
    times = np.tile(np.arange(1, 41), 2)
    assert point.milliseconds == pytest.approx(np.quantile(times, 0.5))
    assert point.p95 == pytest.approx(np.quantile(times, 0.95))
    assert set(threads) == {1}
    assert faiss.omp_get_max_threads() == before
    assert next(waits, None) is None


def test_bad_input_names_the_fault(tmp_path, data):
    vectors, queries = data
    with made(tmp_path, vectors) as index:
        with pytest.raises(DimensionMismatchError):
            measure_frontier(index, queries[:, :3])
        with pytest.raises(InputError, match="queries are empty"):
            measure_frontier(index, queries[:0])
        with pytest.raises(InputError, match="nprobe"):
            measure_frontier(index, queries, nprobes=[0])
        with pytest.raises(InputError, match="nprobes is empty"):
            measure_frontier(index, queries, nprobes=[])
        with pytest.raises(InputError, match="repeats"):
            measure_frontier(index, queries, repeats=0)
    with (
        VectorIndex.create(tmp_path / "empty", dimension=2) as index,
        pytest.raises(InputError, match="is empty; add vectors"),
    ):
        measure_frontier(index, np.eye(2))

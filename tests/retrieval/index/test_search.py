"""Searching against raw FAISS as the oracle, and what searches refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Thread

import faiss
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearfar.errors import DimensionMismatchError, InputError, UnknownNameError
from nearfar.retrieval import VectorIndex
from nearfar.retrieval.index.structures import choose_nlist, default_nprobe

METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


def vectors_of(seed: int, rows: int, dimension: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


def names_of(rows: int) -> list[str]:
    return [f"id-{row:05d}" for row in range(rows)]


def oracle(index: faiss.Index, metric: str, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if metric == "cosine":
        queries = queries.copy()
        faiss.normalize_L2(queries)
    scores, rows = index.search(queries, k)
    return (-scores if metric == "l2" else scores), rows


def build_oracle(key: str, metric: str, vectors: np.ndarray) -> faiss.Index:
    vectors = vectors.copy()
    if metric == "cosine":
        faiss.normalize_L2(vectors)
    index = faiss.index_factory(vectors.shape[1], key, METRICS[metric])
    if "IVF" in key:
        index.cp.seed = 1234
        index.cp.max_points_per_centroid = 64
        index.train(vectors)
    index.add(vectors)
    return index


@pytest.mark.parametrize("segments", [1, 5])
@pytest.mark.parametrize("metric", list(METRICS))
def test_flat_equals_raw_faiss(tmp_path: Path, metric: str, segments: int) -> None:
    vectors, queries, names = vectors_of(0, 503), vectors_of(1, 40), names_of(503)
    expected_scores, expected_rows = oracle(build_oracle("Flat", metric, vectors), metric, queries, 10)
    with VectorIndex.create(tmp_path / "i", dimension=16, metric=metric, factory="flat") as index:
        for part in np.array_split(np.arange(503), segments):
            index.add(vectors[part], [names[row] for row in part])
        assert len(index.info()["segments"]) == segments
        result = index.search(queries, 10)
    assert result.ids.tolist() == [[names[row] for row in rows] for rows in expected_rows]
    np.testing.assert_allclose(result.scores, expected_scores, rtol=2e-5, atol=2e-5)
    assert result.scores.dtype == np.float32
    assert result.counts.tolist() == [10] * 40


@pytest.mark.parametrize("nprobe", [1, 7, 10_000])
@pytest.mark.parametrize("metric", list(METRICS))
def test_ivf_equals_raw_faiss(tmp_path: Path, metric: str, nprobe: int) -> None:
    vectors, queries, names = vectors_of(0, 3000), vectors_of(1, 30), names_of(3000)
    raw = build_oracle(f"IVF{choose_nlist(3000)},Flat", metric, vectors)
    raw.nprobe = min(nprobe, raw.nlist)
    expected_scores, expected_rows = oracle(raw, metric, queries, 5)
    with VectorIndex.create(tmp_path / "i", dimension=16, metric=metric, factory="ivf") as index:
        index.add(vectors, names)
        assert index.info()["segments"][0]["kind"] == "ivf"
        result = index.search(queries, 5, nprobe=nprobe)
    assert result.ids.tolist() == [[names[row] for row in rows] for rows in expected_rows]
    np.testing.assert_allclose(result.scores, expected_scores, rtol=2e-5, atol=2e-5)


def test_probing_every_list_of_several_ivf_segments_is_exact(tmp_path: Path) -> None:
    vectors, queries, names = vectors_of(0, 4500), vectors_of(1, 20), names_of(4500)
    _, rows = oracle(build_oracle("Flat", "l2", vectors), "l2", queries, 8)
    with VectorIndex.create(tmp_path / "i", dimension=16, metric="l2", factory="ivf") as index:
        for start, stop in ((0, 2500), (2500, 4400), (4400, 4500)):
            index.add(vectors[start:stop], names[start:stop])
        kinds = [segment["kind"] for segment in index.info()["segments"]]
        result = index.search(queries, 8, nprobe=10_000)
        index.verify()
    assert kinds == ["ivf", "ivf", "flat"]  # the last add is too small for an inverted file
    assert len(list((tmp_path / "i" / "segments").glob("codec-*"))) == 1
    assert result.ids.tolist() == [[names[row] for row in found] for found in rows]


def test_auto_is_exact_for_small_adds(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=16) as index:
        index.add(vectors_of(0, 2000), names_of(2000))
        assert index.info()["segments"][0]["kind"] == "flat"
        assert index.info()["nlist"] is None


def test_nprobe_belongs_to_the_call(tmp_path: Path) -> None:
    vectors, queries = vectors_of(0, 3000), vectors_of(1, 50)
    with VectorIndex.create(tmp_path / "i", dimension=16, factory="ivf") as index:
        index.add(vectors, names_of(3000))
        default = index.search(queries, 10).ids.tolist()
        index.search(queries, 10, nprobe=1)
        assert index.search(queries, 10).ids.tolist() == default
        nlist = index.info()["nlist"]
        assert index.search(queries, 10, nprobe=default_nprobe(nlist)).ids.tolist() == default
        assert index.search(queries, 10, nprobe=1).ids.tolist() != default


def test_training_is_repeatable(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        with VectorIndex.create(tmp_path / name, dimension=16, factory="ivf") as index:
            index.add(vectors_of(0, 2000), names_of(2000))
        files.append(sorted(path for path in (tmp_path / name).rglob("*") if path.suffix in (".faiss", ".npy")))
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_adding_in_chunks_equals_adding_at_once(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 60), label="rows")
    cuts = sorted(data.draw(st.sets(st.integers(1, rows), max_size=5), label="cuts"))
    metric = data.draw(st.sampled_from(sorted(METRICS)), label="metric")
    k = data.draw(st.integers(1, 70), label="k")
    # small whole numbers: many scores are equal, and all are exact in float32 for these two metrics
    values = st.integers(0, 2)
    grid = np.array(data.draw(st.lists(st.tuples(*[values] * 3), min_size=rows, max_size=rows)), dtype=np.float32)
    if metric == "cosine":
        grid[:, 0] += 1
    names = data.draw(st.permutations(names_of(rows)))
    folder = tmp_path_factory.mktemp("chunks")
    with (
        VectorIndex.create(folder / "once", dimension=3, metric=metric) as once,
        VectorIndex.create(folder / "chunks", dimension=3, metric=metric) as chunks,
    ):
        once.add(grid, names)
        for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
            if stop > start:
                chunks.add(grid[start:stop], names[start:stop])
        queries = grid[:5]
        a, b = once.search(queries, k), chunks.search(queries, k)
        assert once.ids() == chunks.ids() == list(names)
    assert a.counts.tolist() == b.counts.tolist() == [min(k, rows)] * len(queries)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6, atol=1e-6)
    if metric != "cosine":
        for query, count in enumerate(a.counts):
            # which of the equally good at the end of the list are returned is open; the others and their order are not
            clear = a.scores[query] > a.scores[query, count - 1]
            assert a.ids[query, clear].tolist() == b.ids[query, clear].tolist()
    if metric != "cosine" and k >= rows:
        assert a.ids.tolist() == b.ids.tolist()


def test_equal_scores_are_ordered_by_id(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2, metric="inner_product") as index:
        index.add([[1.0, 0.0], [1.0, 0.0]], ["d", "b"])
        index.add([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]], ["c", "z", "a"])
        assert index.search([1.0, 0.0], 6).ids.tolist() == [["z", "a", "b", "c", "d", None]]


def test_k_beyond_the_count_pads(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2) as index:
        empty = index.search(np.ones((3, 2)), 4)
        assert empty.counts.tolist() == [0, 0, 0]
        assert list(empty) == [[], [], []]
        assert empty.ids.shape == empty.scores.shape == (3, 4)
        index.add(np.eye(2), ["a", "b"])
        result = index.search([1.0, 0.5], 5)
    assert result.ids.tolist() == [["a", "b", None, None, None]]
    assert np.isneginf(result.scores[0, 2:]).all()
    assert result.counts.tolist() == [2]
    assert len(result[0]) == 2


def test_ivf_with_few_probes_reports_what_it_found(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=16, factory="ivf") as index:
        index.add(vectors_of(0, 1000), names_of(1000))
        result = index.search(vectors_of(1, 4), 900, nprobe=1)
    assert (result.counts < 900).all()
    for query, count in enumerate(result.counts):
        assert None not in result.ids[query, :count].tolist()
        assert set(result.ids[query, count:]) == {None}


@pytest.mark.parametrize(
    "queries",
    [
        torch.ones(2, 3),
        torch.ones(2, 3, dtype=torch.bfloat16),
        np.ones((2, 3), np.float16),
        np.ones((2, 3)),
        [[1, 1, 1]] * 2,
    ],
    ids=["torch", "bfloat16", "float16", "float64", "lists"],
)
def test_accepts_every_float(tmp_path: Path, queries: object) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=3, metric="inner_product") as index:
        index.add(queries, ["a", "b"])
        np.testing.assert_array_equal(index.search(queries, 2).scores, np.full((2, 2), 3, np.float32))
        assert index.search(torch.ones(3), 1).scores.shape == (1, 1)


def test_float16_is_stored_as_its_float32_value(tmp_path: Path) -> None:
    half = vectors_of(3, 20).astype(np.float16)
    with VectorIndex.create(tmp_path / "i", dimension=16, metric="l2") as index:
        index.add(half, names_of(20))
        np.testing.assert_array_equal(index.vectors(names_of(20)), half.astype(np.float32))


def test_large_values_do_not_overflow_cosine(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2) as index:
        index.add(np.array([[1e30, 0.0], [1e-30, 1e-30]]), ["a", "b"])
        result = index.search([3e30, 3e30], 2)
    assert result.ids.tolist() == [["b", "a"]]
    np.testing.assert_allclose(result.scores[0], [1.0, np.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_k_must_be_positive(tmp_path: Path, k: object) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2) as index, pytest.raises(InputError, match="k must be"):
        index.search([1.0, 0.0], k)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ([np.nan, 1.0], InputError, "row 0 holds NaN"),
        ([[1.0, 1.0], [np.inf, 1.0]], InputError, "row 1 holds NaN or infinity"),
        ([1e39, 1.0], InputError, "infinity"),  # finite as float64, not as float32
        ([1.0, 2.0, 3.0], DimensionMismatchError, "dimension 3 and the index has dimension 2"),
        ([0.0, 0.0], InputError, "row 0 is a zero vector"),
        (np.ones((1, 1, 2)), InputError, r"shape \(1, 1, 2\)"),
        (["a", "b"], InputError, "real numbers"),
        ([[1.0], [1.0, 2.0]], InputError, "matrix"),
        (np.ones(2, dtype=complex), InputError, "complex"),
    ],
)
def test_refuses_queries(tmp_path: Path, query: object, error: type[Exception], message: str) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2) as index:
        index.add(np.eye(2), ["a", "b"])
        with pytest.raises(error, match=message):
            index.search(query, 1)


def test_refuses_unknown_and_bad_parameters(tmp_path: Path) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=2) as index:
        with pytest.raises(UnknownNameError, match="did you mean nprobe"):
            index.search([1.0, 0.0], 1, nprobes=3)
        with pytest.raises(InputError, match="nprobe must be a positive integer, got 0"):
            index.search([1.0, 0.0], 1, nprobe=0)


def test_threads_search_one_reader(tmp_path: Path) -> None:
    vectors, queries = vectors_of(0, 3000), vectors_of(1, 50)
    with VectorIndex.create(tmp_path / "i", dimension=16, factory="ivf") as index:
        index.add(vectors, names_of(3000))
    with VectorIndex.open(tmp_path / "i") as index:
        expected = {nprobe: index.search(queries, 5, nprobe=nprobe).ids.tolist() for nprobe in (1, 4, 60)}
        found: dict[int, list[bool]] = {nprobe: [] for nprobe in expected}

        def work(nprobe: int) -> None:
            for _ in range(20):
                found[nprobe].append(index.search(queries, 5, nprobe=nprobe).ids.tolist() == expected[nprobe])

        threads = [Thread(target=work, args=(nprobe,)) for nprobe in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(len(answers) == 20 and all(answers) for answers in found.values())


def test_from_and_to_faiss(tmp_path: Path) -> None:
    vectors, queries, names = vectors_of(0, 300), vectors_of(1, 10), names_of(300)
    for key in ("Flat", "IVF4,Flat", "HNSW8"):
        raw = faiss.index_factory(16, key)
        raw.train(vectors)
        raw.add(vectors)
        with VectorIndex.from_faiss(tmp_path / key, raw, names) as index:
            assert index.metric == "l2"
            np.testing.assert_array_equal(index.vectors(names), vectors)
            back, ids = index.to_faiss()
            _, rows = back.search(queries, 5)
            assert [[ids[row] for row in found] for found in rows] == index.search(queries, 5).ids.tolist()


def test_from_faiss_refuses_what_has_no_vectors_or_metric(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no counterpart"):
        VectorIndex.from_faiss(tmp_path / "a", faiss.IndexFlat(4, faiss.METRIC_Linf), [])
    mapped = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    mapped.add_with_ids(np.eye(4, dtype=np.float32), np.arange(4))
    with pytest.raises(InputError, match="cannot give its vectors back"):
        VectorIndex.from_faiss(tmp_path / "b", mapped, list("abcd"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("factory", ["flat", "ivf"])
def test_search_works_beside_pytorch_metric_learning(tmp_path: Path, factory: str) -> None:
    # It puts functions for torch in the place of FAISS's own, for the rest of the process.
    code = """
import sys
import numpy as np
import faiss.contrib.torch_utils
from nearfar.retrieval import VectorIndex

vectors = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
with VectorIndex.create(sys.argv[1], dimension=8, factory=sys.argv[2]) as index:
    index.add(vectors, [str(i) for i in range(2000)])
    print(index.search(vectors[:3], 1).ids.ravel().tolist())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "index"), factory]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "['0', '1', '2']"

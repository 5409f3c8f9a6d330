"""Adding and searching 200,000 vectors of 128 dimensions: VectorIndex against raw FAISS on the same data.

Clustered unit vectors (200 clusters, each in its own subspace of 32 dimensions) and held-out queries from the same
clusters, searched in batches and one at a time. Raw FAISS keeps everything in memory; nearfar's add also checks and
normalises the vectors, writes ids and files, forces them to the disk and hashes them.

Run: python benchmarks/index.py
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from nearfar import __version__
from nearfar.retrieval import VectorIndex
from nearfar.retrieval.index.structures import choose_nlist, default_nprobe

RESULTS = Path(__file__).parent / "results"


def make_data(rows: int, queries: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, dimension)).astype(np.float32)
    bases = rng.standard_normal((200, 32, dimension)).astype(np.float32) / np.sqrt(32)
    labels = rng.integers(0, 200, rows + queries)
    vectors = np.empty((rows + queries, dimension), np.float32)
    for label in range(200):
        members = np.flatnonzero(labels == label)
        vectors[members] = centres[label] + rng.standard_normal((len(members), 32)).astype(np.float32) @ bases[label]
    faiss.normalize_L2(vectors)
    return vectors[:rows], vectors[rows:]


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Least wall time: what other processes on the machine take is left out as far as possible."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def recall(found: list[list[str]], exact: list[list[str]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]))


def raw_index(factory: str, vectors: np.ndarray) -> faiss.Index:
    if factory == "flat":
        return faiss.IndexFlatIP(vectors.shape[1])
    nlist = choose_nlist(len(vectors))
    index = faiss.index_factory(vectors.shape[1], f"IVF{nlist},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.nprobe = default_nprobe(nlist)
    return index


def fill(index: faiss.Index, vectors: np.ndarray, path: Path | None) -> None:
    index.train(vectors)
    index.add(vectors)
    if path is not None:
        faiss.write_index(index, str(path))


def measure(
    factory: str, vectors: np.ndarray, queries: np.ndarray, k: int, repeats: int, folder: Path
) -> dict[str, Any]:
    names = [f"doc-{row}" for row in range(len(vectors))]
    raw = raw_index(factory, vectors)
    raw_add = seconds(lambda: fill(raw, vectors, None), 1)
    raw_write = seconds(lambda: faiss.write_index(raw, str(folder / "raw.faiss")), 1)
    created = VectorIndex.create(folder / factory, dimension=vectors.shape[1], factory=factory)
    with created as index:
        own_add = seconds(lambda: index.add(vectors, names), 1)
        nlist = index.info()["nlist"]
    first_open = seconds(lambda: VectorIndex.open(folder / factory).close(), 1)
    time.sleep(2.5)  # hashes of files younger than two seconds are not remembered
    VectorIndex.open(folder / factory).close()
    later_open = seconds(lambda: VectorIndex.open(folder / factory).close(), repeats)
    with VectorIndex.open(folder / factory) as index:
        index.search(queries, k)  # the first search reads the ids
        exact = [[names[row] for row in rows] for rows in faiss.knn(queries, vectors, k, metric=0)[1]]
        found = index.search(queries, k).ids.tolist()
        _, raw_rows = raw.search(queries, k)
        singles = queries[:200]
        result = {
            "factory": factory,
            "nlist": nlist,
            "nprobe": None if nlist is None else default_nprobe(nlist),
            "raw_add_s": raw_add,
            "raw_write_s": raw_write,
            "own_add_s": own_add,
            "own_first_open_s": first_open,
            "own_later_open_s": later_open,
            "raw_batch_s": seconds(lambda: raw.search(queries, k), repeats),
            "own_batch_s": seconds(lambda: index.search(queries, k), repeats),
            "raw_single_ms": 1e3 * seconds(lambda: [raw.search(q[None], k) for q in singles], repeats) / len(singles),
            "own_single_ms": 1e3 * seconds(lambda: [index.search(q, k) for q in singles], repeats) / len(singles),
            "own_recall": recall(found, exact),
            "raw_recall": recall([[names[row] for row in rows] for rows in raw_rows], exact),
            "bytes": index.info()["bytes"],
        }
    result["batch_ratio"] = result["own_batch_s"] / result["raw_batch_s"]
    result["single_overhead_ms"] = result["own_single_ms"] - result["raw_single_ms"]
    return result


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# VectorIndex against raw FAISS",
        "",
        f"`{report['command']}`",
        "",
        f"{report['rows']:,} x {report['dimension']} clustered unit vectors, {report['queries']} held-out queries, "
        f"k = {report['k']}, {report['threads']} thread(s), best of {report['repeats']} runs "
        "(adding and the first opening: one run). "
        f"nearfar {report['nearfar']}, FAISS {report['faiss']}, Python {report['python']}.",
        "",
        "| | " + " | ".join(row["factory"] for row in report["results"]) + " |",
        "|---|" + "---|" * len(report["results"]),
    ]
    labels = {
        "nlist": "lists",
        "nprobe": "lists probed (default)",
        "raw_add_s": "raw FAISS: train and add in memory, s",
        "raw_write_s": "raw FAISS: write the file, s",
        "own_add_s": "nearfar: add (check, normalise, train, write, force to disk, hash), s",
        "own_first_open_s": "nearfar: open and hash every file, s",
        "own_later_open_s": "nearfar: open, hashes remembered, s",
        "raw_batch_s": "raw FAISS: search all queries, s",
        "own_batch_s": "nearfar: search all queries, s",
        "batch_ratio": "ratio",
        "raw_single_ms": "raw FAISS: one query, ms",
        "own_single_ms": "nearfar: one query, ms",
        "single_overhead_ms": "difference, ms",
        "raw_recall": "raw FAISS: recall of the exact k best",
        "own_recall": "nearfar: recall of the exact k best",
        "bytes": "nearfar: bytes on disk",
    }
    for key, label in labels.items():
        values = [row[key] for row in report["results"]]
        cells = ["-" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in values]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors, queries = make_data(options.rows, options.queries, options.dimension, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(factory, vectors, queries, options.k, options.repeats, Path(folder)) for factory in ("flat", "ivf")
        ]
    command = shlex.join(["python", "benchmarks/index.py", *sys.argv[1:]])
    versions = {"nearfar": __version__, "faiss": faiss.__version__, "python": platform.python_version()}
    report = {"command": command, **vars(options), **versions, "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "index.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "index.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()

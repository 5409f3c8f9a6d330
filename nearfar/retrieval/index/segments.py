"""Segments: immutable folders of vectors, ids, documents and, for large ones, an inverted file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nearfar.data.documents import Document
from nearfar.errors import IndexCorruptError, InputError
from nearfar.retrieval.index.files import sha256, sync_file, sync_folder
from nearfar.retrieval.index.manifest import FileEntry, Manifest, Metric, SegmentEntry
from nearfar.retrieval.index.results import ObjectArray, Rows
from nearfar.retrieval.index.structures import read_faiss, search_flat, search_ivf, write_faiss
from nearfar.retrieval.index.vectors import Float32

_ROWS_PER_BATCH = 16_384  # of an Arrow file: row r lies in batch r // _ROWS_PER_BATCH


class DocumentLike(Protocol):
    """What `add` needs of a document; `nearfar.data.Document` is one."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102


def file_entry(root: Path, path: Path) -> FileEntry:
    """Force a finished file to the disk and describe it."""
    sync_file(path)
    return FileEntry(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256(path))


def write_segment(
    root: Path,
    name: str,
    vectors: Float32,
    ids: Sequence[str],
    documents: Sequence[DocumentLike] | None,
    ivf: Any = None,
) -> SegmentEntry:
    """Write a segment's folder and force it to the disk; nothing refers to it before the manifest does.

    Args:
        root: folder of the index.
        name: path of the segment relative to it.
        vectors: (n, d) float32, unit length for cosine.
        ids: n ids.
        documents: n documents, or None.
        ivf: trained FAISS index that holds the n vectors, or None for an exact scan of `vectors`.
    """
    folder = root / name
    folder.mkdir(parents=True)
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    _write_arrow(folder / "ids.arrow", {"id": list(ids)})
    if documents is not None:
        columns = {"title": [d.title for d in documents], "text": [d.text for d in documents]}
        _write_arrow(folder / "documents.arrow", columns)
    if ivf is not None:
        write_faiss(ivf, folder / "index.faiss")
    entry = SegmentEntry(
        name=name,
        count=len(ids),
        vectors=file_entry(root, folder / "vectors.npy"),
        ids=file_entry(root, folder / "ids.arrow"),
        documents=None if documents is None else file_entry(root, folder / "documents.arrow"),
        faiss=None if ivf is None else file_entry(root, folder / "index.faiss"),
    )
    sync_folder(folder)
    sync_folder(folder.parent)
    sync_folder(root)
    return entry


def _write_arrow(path: Path, columns: dict[str, list[str]]) -> None:
    # Arrow's file format, uncompressed: a row is read from the memory map without decoding its neighbours.
    import pyarrow as pa

    try:
        table = pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
    except (UnicodeEncodeError, pa.ArrowException) as error:
        raise InputError(f"ids and documents must be text that UTF-8 can hold: {error}") from None
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)


class _ArrowColumns:
    """Random access to the string columns of a memory-mapped Arrow file."""

    def __init__(self, path: Path, names: tuple[str, ...], rows: int) -> None:
        import pyarrow as pa

        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self._names = [reader.schema.get_field_index(name) for name in names]
        except (pa.ArrowException, OSError) as error:
            raise IndexCorruptError(f"{path}: {error}; restore it or build the index again") from error
        found = sum(batch.num_rows for batch in self._batches)
        if found != rows or -1 in self._names:
            raise IndexCorruptError(
                f"{path}: {found} rows with columns {reader.schema.names} instead of {rows} rows with {list(names)}; "
                "restore it or build the index again"
            )

    def row(self, row: int) -> list[str]:
        batch = self._batches[row // _ROWS_PER_BATCH]
        return [batch.column(name)[row % _ROWS_PER_BATCH].as_py() for name in self._names]

    def column(self) -> list[str]:
        return [value for batch in self._batches for value in batch.column(self._names[0]).to_pylist()]


class Segment:
    """An open segment. Its files stay mapped, so a reader keeps them whatever a later writer does.

    Args:
        root: folder of the index.
        entry: the segment's entry in `manifest`; its files' sizes and hashes have been checked.
        manifest: gives dimension and metric.
    """

    def __init__(self, root: Path, entry: SegmentEntry, manifest: Manifest) -> None:
        self.entry = entry
        self.count = entry.count
        self._metric: Metric = manifest.metric
        self.vectors = _map_vectors(root / entry.vectors.path, (entry.count, manifest.dimension))
        self._ids = _ArrowColumns(root / entry.ids.path, ("id",), entry.count)
        self._documents: _ArrowColumns | None = None
        self._ivf: Any = None
        if entry.documents is not None:
            self._documents = _ArrowColumns(root / entry.documents.path, ("title", "text"), entry.count)
        if entry.faiss is not None:
            self._ivf = read_faiss(
                root / entry.faiss.path, entry.faiss.size, entry.count, manifest.dimension, manifest.metric
            )

    @cached_property
    def ids(self) -> ObjectArray:
        """(count,) the ids in the order of the rows."""
        array = np.empty(self.count, dtype=object)
        array[:] = self._ids.column()
        return array

    def document(self, row: int) -> Document | None:
        """The document of a row, or None where the segment was added without documents."""
        if self._documents is None:
            return None
        title, text = self._documents.row(row)
        return Document(id=self.ids[row], text=text, title=title)

    def search(self, queries: Float32, k: int, nprobe: int | None) -> tuple[Float32, Rows]:
        """Scores and rows of the best min(k, count) for each query: (Q, min(k, count)), -inf and -1 if fewer."""
        width = min(k, self.count)
        if self._ivf is None:
            return search_flat(self.vectors, queries, width, self._metric)
        return search_ivf(self._ivf, queries, width, self._metric, nprobe)


def _map_vectors(path: Path, shape: tuple[int, int]) -> Float32:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise IndexCorruptError(f"{path}: {error}; restore it or build the index again") from error
    if vectors.shape != shape or vectors.dtype != np.dtype("<f4"):
        raise IndexCorruptError(
            f"{path}: {vectors.dtype} of shape {vectors.shape} instead of float32 of shape {shape}; "
            "build the index again"
        )
    mapped: Float32 = vectors
    return mapped

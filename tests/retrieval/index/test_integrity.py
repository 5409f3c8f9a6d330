"""Damage: truncated, altered, missing files, and manifests that say what they should not."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from nearfar.data import Document
from nearfar.errors import DataFileError, IndexCorruptError
from nearfar.retrieval import VectorIndex
from nearfar.retrieval.index import files, structures

FILES = ["vectors.npy", "ids.arrow", "documents.arrow", "index.faiss"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an index with every kind of file."""
    names = [str(row) for row in range(1000)]
    vectors = np.random.default_rng(0).standard_normal((1000, 4))
    with VectorIndex.create(tmp_path / "index", dimension=4, factory="ivf") as index:
        index.add(vectors, names, [Document(name, f"text {name}") for name in names])
    return tmp_path / "index"


def find(folder: Path, name: str) -> Path:
    return next(folder.rglob(name))


def flip_bit(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("checksum")
    change(content)
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", [*FILES, "codec-00000001.faiss"])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_found_at_opening_and_by_verify(folder: Path, name: str, where: float) -> None:
    path = find(folder, name)
    with VectorIndex.open(folder) as opened_before:
        flip_bit(path, int(where * path.stat().st_size))
        with pytest.raises(IndexCorruptError, match=f"{name}: SHA-256"):
            VectorIndex.open(folder)
        with pytest.raises(IndexCorruptError, match=f"{name}: SHA-256"):
            opened_before.verify()


@pytest.mark.parametrize("name", [*FILES, "codec-00000001.faiss"])
@pytest.mark.parametrize("size", [0, 17, -1])
def test_a_truncated_file_is_named(folder: Path, name: str, size: int) -> None:
    path = find(folder, name)
    full = path.stat().st_size
    os.truncate(path, size if size >= 0 else full - 1)
    with pytest.raises(IndexCorruptError, match=f"{name}: .* bytes instead of {full}"):
        VectorIndex.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    find(folder, name).unlink()
    with pytest.raises(IndexCorruptError, match=f"{name}: the file is missing"):
        VectorIndex.open(folder)


def test_any_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    parsed = json.loads(whole)
    for position in range(0, len(whole), 7):
        flip_bit(path, position)
        try:
            same = json.loads(path.read_bytes()) == parsed  # a space may change into another kind of space
        except ValueError:
            same = False
        if not same:
            with pytest.raises(IndexCorruptError, match=r"manifest\.json"):
                VectorIndex.open(folder)
        path.write_bytes(whole)
    VectorIndex.open(folder).verify()


@pytest.mark.parametrize("path", ["../other/vectors.npy", "/etc/passwd", "segments/../../x", "C:/x", "..\\x", ""])
@pytest.mark.parametrize("role", ["vectors", "documents", "faiss"])
def test_paths_do_not_leave_the_folder(folder: Path, path: str, role: str) -> None:
    edit_manifest(folder, lambda content: content["segments"][0][role].update(path=path))
    with pytest.raises(IndexCorruptError, match="leaves the folder"):
        VectorIndex.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format_version=3), "format version 3, and this nearfar reads up to 2"),
        (lambda content: content.update(dimension=8), "float32 of shape"),
        (lambda content: content.update(metric="l2"), "instead of an inverted file"),
        (lambda content: content.update(metric="dot"), "metric"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(count=999), "hold 1000 vectors and the manifest says 999"),
        (lambda content: content["segments"][0].update(count=999), "instead of"),
        (lambda content: content.pop("dimension"), "dimension"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(folder, change)
    with pytest.raises(IndexCorruptError, match=message):
        VectorIndex.open(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format": "other"}', "\x00\x01"])
def test_a_manifest_of_something_else_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(IndexCorruptError, match=r"manifest\.json"):
        VectorIndex.open(folder)


def test_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no such index folder"):
        VectorIndex.open(tmp_path / "none")
    with pytest.raises(DataFileError, match=r"holds no manifest\.json"):
        VectorIndex.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFileError, match="this is a file"):
        VectorIndex.open(tmp_path / "file", writable=True)


def test_an_unreadable_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DataFileError, match=r"manifest\.json: permission denied"):
        VectorIndex.open(folder)


def test_faiss_gets_a_byte_limit_and_the_old_one_is_restored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = faiss.get_deserialization_vector_byte_limit()
    limits = []
    real = faiss.read_index

    def spy(path: str) -> Any:
        limits.append((faiss.get_deserialization_vector_byte_limit(), Path(path).stat().st_size))
        return real(path)

    monkeypatch.setattr(faiss, "read_index", spy)
    VectorIndex.open(folder).close()
    assert len(limits) == 1
    assert all(size <= limit <= size + 64 for limit, size in limits)
    assert faiss.get_deserialization_vector_byte_limit() == before


def test_a_lying_faiss_file_with_a_matching_hash_is_refused(folder: Path) -> None:
    # damage before the hash was taken: FAISS itself must refuse, within its limits
    path = find(folder, "index.faiss")
    raw = bytearray(path.read_bytes())
    for length, what in ((len(raw) // 2, "cannot read"), (40, "cannot read"), (4, "cannot read")):
        path.write_bytes(bytes(raw[:length]))
        with pytest.raises(IndexCorruptError, match=what):
            structures.read_faiss(path, length, 1000, 4, "cosine")
    faiss.write_index(faiss.IndexFlatIP(4), str(path))
    with pytest.raises(IndexCorruptError, match="IndexFlat"):
        structures.read_faiss(path, path.stat().st_size, 1000, 4, "cosine")


def test_hashes_are_remembered_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = files.sha256

    def spy(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "sha256", spy)
    every = {*FILES, "codec-00000001.faiss"}
    VectorIndex.open(folder).close()
    VectorIndex.open(folder).close()
    assert len(hashed) == 2 * len(every)  # too fresh to be trusted: a change might not change the times
    time.sleep(2.1)
    hashed.clear()
    VectorIndex.open(folder).close()
    VectorIndex.open(folder).close()
    assert sorted(hashed) == sorted(every)
    path = find(folder, "vectors.npy")
    stat = path.stat()
    flip_bit(path, 1000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a restored modification time hides nothing
    with pytest.raises(IndexCorruptError, match=r"vectors\.npy: SHA-256"):
        VectorIndex.open(folder)


@pytest.mark.parametrize("content", ["", "[1]", '{"segments/00000001/vectors.npy": 3}'])
def test_a_damaged_memory_of_hashes_costs_only_time(folder: Path, content: str) -> None:
    (folder / ".verified.json").write_text(content)
    with VectorIndex.open(folder) as index:
        assert len(index) == 1000

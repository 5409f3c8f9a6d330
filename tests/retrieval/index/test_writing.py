"""Adding: what is refused, what a crash, a full disk or a second writer leaves behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.data import Document
from nearfar.errors import DataFileError, DimensionMismatchError, DuplicateIdError, InputError, UnknownNameError
from nearfar.retrieval import VectorIndex


def files_of(folder: Path) -> dict[str, bytes]:
    own = (".lock", ".verified.json")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in own
    }


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The folder of an index that holds "a" and "b"."""
    with VectorIndex.create(tmp_path / "index", dimension=2) as index:
        index.add(np.eye(2), ["a", "b"])
    return tmp_path / "index"


UNICODE = ["naïve", "日本語", "🙂", "a b\tc", "../x", "Ω" * 300, "a\nb", "\x00"]


def test_documents_and_unicode_come_back(tmp_path: Path) -> None:
    documents = [Document(name, text=f"text of {name}", title=name[::-1]) for name in UNICODE]
    with VectorIndex.create(tmp_path / "i", dimension=8) as index:
        index.add(np.eye(8), UNICODE, documents)
        index.add(np.ones((1, 8)), ["bare"])
    with VectorIndex.open(tmp_path / "i") as index:
        assert index.ids() == [*UNICODE, "bare"]
        assert len(index) == 9
        assert all(name in index for name in UNICODE)
        assert "none" not in index
        assert 3 not in index
        assert index.get([*reversed(UNICODE), "bare"]) == [*reversed(documents), None]
        hits = [index.search(row, 1)[0][0] for row in np.eye(8)]
        assert [hit.document for hit in hits] == documents
        assert index.search(np.ones(8), 1)[0][0].document is None
        index.verify()


def test_documents_beyond_one_batch(tmp_path: Path) -> None:
    names = [str(row) for row in range(40_000)]
    documents = [Document(name, text=f"text {name}") for name in names]
    with VectorIndex.create(tmp_path / "i", dimension=1, metric="l2") as index:
        index.add(np.arange(40_000, dtype=np.float32)[:, None], names, documents)
        for row in (0, 16_383, 16_384, 32_768, 39_999):
            assert index.search([float(row)], 1)[0][0].document == documents[row]


def test_vectors_are_exact(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    names = list("abcdefg")
    with VectorIndex.create(tmp_path / "i", dimension=3, metric="inner_product") as index:
        index.add(values[:4], names[:4])
        index.add(values[4:], names[4:])
        np.testing.assert_array_equal(index.vectors(["g", "a", "e"]), values[[6, 0, 4]])
        with pytest.raises(InputError, match="id 'nope' is not in index"):
            index.vectors(["a", "nope"])
        with pytest.raises(InputError, match="list of strings"):
            index.get("a")


@pytest.mark.parametrize(
    ("vectors", "ids", "error", "message"),
    [
        (np.ones((2, 3)), ["c", "d"], DimensionMismatchError, "dimension 3 and the index has dimension 2"),
        ([[1, 2], [3, np.nan]], ["c", "d"], InputError, r"row 1 \(id 'd'\) holds NaN"),
        ([[1, 2], [3, -np.inf]], ["c", "d"], InputError, r"row 1 \(id 'd'\) holds NaN or infinity"),
        ([[0, 0], [3, 1]], ["c", "d"], InputError, r"row 0 \(id 'c'\) is a zero vector"),
        (np.eye(2), ["c", "c"], DuplicateIdError, "id 'c' occurs twice"),
        (np.eye(2), ["c", "a"], DuplicateIdError, "id 'a' is in the index already"),
        (np.eye(2), ["c"], InputError, "2 vectors and 1 ids"),
        (np.eye(2), "cd", InputError, "list of strings, got the string 'cd'"),
        (np.eye(2), ["c", 7], InputError, "non-empty strings, got 7 in row 1"),
        (np.eye(2), ["", "c"], InputError, "non-empty strings, got '' in row 0"),
        (np.eye(2), ["c", "\ud800"], InputError, "UTF-8"),
        (np.empty((0, 2)), [], InputError, "nothing to add"),
        (np.ones(2), ["c"], InputError, r"shape \(2,\)"),
        (np.array([["x", "y"]]), ["c"], InputError, "real numbers"),
    ],
)
def test_add_refuses_and_changes_nothing(
    two: Path, vectors: Any, ids: Any, error: type[Exception], message: str
) -> None:
    before = files_of(two)
    with VectorIndex.open(two, writable=True) as index:
        with pytest.raises(error, match=message):
            index.add(vectors, ids)
        assert files_of(two) == before
        index.add([[1.0, 1.0]], ["later"])
        assert index.ids() == ["a", "b", "later"]


def test_documents_must_agree_with_ids(two: Path) -> None:
    with VectorIndex.open(two, writable=True) as index:
        with pytest.raises(InputError, match="2 ids and 1 documents"):
            index.add(np.eye(2), ["c", "d"], [Document("c", "")])
        with pytest.raises(InputError, match="row 1 has id 'd' and a document with id 'e'"):
            index.add(np.eye(2), ["c", "d"], [Document("c", ""), Document("e", "")])


def test_create_refuses(two: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="holds an index already"):
        VectorIndex.create(two, dimension=2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFileError, match="is a file"):
        VectorIndex.create(tmp_path / "file", dimension=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(DataFileError, match=r"it holds 'thesis\.tex'"):
        VectorIndex.create(tmp_path / "full", dimension=2)
    with pytest.raises(UnknownNameError, match="did you mean cosine"):
        VectorIndex.create(tmp_path / "n", dimension=2, metric="cosin")
    with pytest.raises(UnknownNameError, match="known: auto, flat, ivf"):
        VectorIndex.create(tmp_path / "n", dimension=2, factory="HNSW32")
    with pytest.raises(InputError, match="dimension must be a positive integer"):
        VectorIndex.create(tmp_path / "n", dimension=0)
    assert not (tmp_path / "n").exists()
    (tmp_path / "empty").mkdir()
    VectorIndex.create(tmp_path / "empty", dimension=2).close()
    assert len(VectorIndex.open(tmp_path / "empty")) == 0


def test_a_reader_cannot_add_and_a_closed_index_does_nothing(two: Path) -> None:
    with VectorIndex.open(two) as index, pytest.raises(InputError, match="writable=True"):
        index.add(np.eye(2), ["c", "d"])
    index.close()
    for use in (len, VectorIndex.ids, VectorIndex.info, VectorIndex.verify):
        with pytest.raises(InputError, match="is closed"):
            use(index)  # type: ignore[operator]
    with pytest.raises(InputError, match="is closed"):
        index.search([1.0, 0.0], 1)
    with pytest.raises(InputError, match="is closed"):
        index.add(np.eye(2), ["c", "d"])


def test_a_second_writer_is_told(two: Path) -> None:
    with VectorIndex.open(two, writable=True) as index:
        with pytest.raises(InputError, match="being written by another"):
            VectorIndex.open(two, writable=True)
        assert len(VectorIndex.open(two)) == 2  # readers need no lock
        index.add([[1.0, 1.0]], ["c"])
    with VectorIndex.open(two, writable=True) as index:
        assert len(index) == 3


def test_a_reader_keeps_its_generation(two: Path) -> None:
    with VectorIndex.open(two) as reader, VectorIndex.open(two, writable=True) as writer:
        writer.add([[1.0, 1.0]], ["c"])
        assert (len(reader), len(writer)) == (2, 3)
        assert reader.search([1.0, 1.0], 3).ids.tolist() == [["a", "b", None]]
        assert writer.search([1.0, 1.0], 1).ids.tolist() == [["c"]]
    with VectorIndex.open(two) as reader:
        assert reader.info()["generation"] == 2


def failing(real: Callable[..., Any], error: OSError, on_call: int) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == on_call:
            raise error
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("on_call", range(1, 8))
def test_a_full_disk_leaves_the_old_generation(two: Path, monkeypatch: pytest.MonkeyPatch, on_call: int) -> None:
    # fsync is called for three files, three folders, the manifest, and the folder after the manifest's replacement
    before = files_of(two)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    documents = [Document("c", "text")]
    with VectorIndex.open(two, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, full, on_call))
            with pytest.raises(DataFileError, match="the disk is full"):
                index.add([[1.0, 1.0]], ["c"], documents)
        assert files_of(two) == before
        assert index.search([1.0, 1.0], 3).counts.tolist() == [2]
        index.add([[1.0, 1.0]], ["c"], documents)
    with VectorIndex.open(two) as index:
        index.verify()
        assert index.ids() == ["a", "b", "c"]


def test_a_failure_after_the_manifest_was_replaced_keeps_the_segment(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VectorIndex.open(two, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, OSError(errno.EIO, "Input/output error"), 7))
            with pytest.raises(DataFileError, match="Input/output error"):
                index.add([[1.0, 1.0]], ["c"])  # without documents the seventh is the last
        with pytest.raises(InputError, match="is at generation 2 and this object at 1"):
            index.add([[1.0, 2.0]], ["d"])
    with VectorIndex.open(two, writable=True) as index:
        index.verify()
        assert index.ids() == ["a", "b", "c"]


@pytest.mark.parametrize("factory", ["flat", "ivf"])
def test_faiss_failing_to_write_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    import faiss

    def full(*_: Any) -> None:
        raise RuntimeError("Error in faiss: write error: No space left on device")

    vectors = np.random.default_rng(0).standard_normal((1200, 4))
    names = [str(row) for row in range(1200)]
    with VectorIndex.create(tmp_path / "i", dimension=4, factory=factory) as index:
        with monkeypatch.context() as patch:
            patch.setattr(faiss, "write_index", full)
            if factory == "ivf":
                with pytest.raises(DataFileError, match="is the disk full"):
                    index.add(vectors, names)
                assert list(files_of(tmp_path / "i")) == ["manifest.json"]
        index.add(vectors, names)
        assert len(index) == 1200


def test_permission_denied_at_the_manifest(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(two)
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with VectorIndex.open(two, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing(os.replace, denied, 1))
            with pytest.raises(DataFileError, match="permission denied"):
                index.add([[1.0, 1.0]], ["c"])
        assert files_of(two) == before
        assert len(index) == 2


def test_ctrl_c_during_an_add(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(two)
    with VectorIndex.open(two, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, KeyboardInterrupt(), 4))  # type: ignore[arg-type]
            with pytest.raises(KeyboardInterrupt):
                index.add([[1.0, 1.0]], ["c"])
        assert files_of(two) == before
        index.add([[1.0, 1.0]], ["c"])


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_a_writer_killed_before_the_manifest_changes_nothing(two: Path) -> None:
    before = files_of(two)
    dead = run_python(
        """
        import os, signal, sys
        import numpy as np
        from nearfar.retrieval import VectorIndex

        real = os.replace
        def kill_at_the_manifest(source, target):
            if os.path.basename(target) == "manifest.json":
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = kill_at_the_manifest
        index = VectorIndex.open(sys.argv[1], writable=True)
        index.add(np.ones((5, 2)), list("vwxyz"))
        """,
        str(two),
    )
    assert dead.returncode == -9, dead.stderr
    left = set(files_of(two)) - set(before)
    assert {name.split("/")[0].split(".")[0] for name in left} == {"segments", "manifest"}  # it did get that far
    with VectorIndex.open(two) as reader:
        reader.verify()
        assert reader.ids() == ["a", "b"]
    assert left <= set(files_of(two))  # a reader removes nothing
    with VectorIndex.open(two, writable=True) as writer:  # the dead writer's lock is gone
        assert files_of(two) == before
        writer.add(np.ones((5, 2)), list("vwxyz"))
    with VectorIndex.open(two) as reader:
        assert len(reader) == 7


@pytest.mark.slow
def test_readers_during_a_writer_in_another_process(two: Path) -> None:
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys
                import numpy as np
                from nearfar.retrieval import VectorIndex

                with VectorIndex.open(sys.argv[1], writable=True) as index:
                    print("locked", flush=True)
                    sys.stdin.readline()
                    for i in range(60):
                        index.add(np.full((3, 2), 1.0), [f"{i}-{j}" for j in range(3)])
                """
            ),
            str(two),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="being written by another process"):
        VectorIndex.open(two, writable=True)
    first = VectorIndex.open(two)
    writer.stdin.write("go\n")
    writer.stdin.flush()
    sizes = []
    while writer.poll() is None:
        with VectorIndex.open(two) as reader:
            reader.verify()
            sizes.append(len(reader))
            assert reader.search([1.0, 1.0], 1000).counts.tolist() == [sizes[-1]]
        assert len(first.search([1.0, 1.0], 5)[0]) == 2
    assert writer.wait() == 0
    assert sizes == sorted(sizes)
    assert all((size - 2) % 3 == 0 for size in sizes)
    assert len(VectorIndex.open(two)) == 182


def test_leftovers_are_removed_and_foreign_files_are_not(two: Path) -> None:
    dead = two / "segments" / "00000002"
    dead.mkdir()
    (dead / "vectors.npy").write_bytes(b"half")
    (two / "manifest.json.abc.tmp").write_text("half")
    (two / "notes.txt").write_text("mine")
    (two / "segments" / "notes.txt").write_text("mine")
    VectorIndex.open(two).close()
    assert dead.exists()
    VectorIndex.open(two, writable=True).close()
    assert not dead.exists()
    assert not (two / "manifest.json.abc.tmp").exists()
    assert (two / "notes.txt").exists()
    assert (two / "segments" / "notes.txt").exists()


def test_info_is_json(two: Path) -> None:
    with VectorIndex.open(two) as index:
        info = json.loads(json.dumps(index.info()))
    expected = {"generation": 1, "count": 2, "dimension": 2, "metric": "cosine", "factory": "auto", "normalised": True}
    assert {key: info[key] for key in expected} == expected
    assert info["segments"] == [{"name": "segments/00000001", "count": 2, "kind": "flat", "documents": False}]
    assert info["bytes"] == sum(path.stat().st_size for path in (two / "segments").rglob("*") if path.is_file())

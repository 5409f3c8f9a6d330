"""The one writer of an index: its lock, its transactions, and what a writer that died left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nearfar import __version__
from nearfar.errors import DataFileError, DuplicateIdError, InputError, NearfarError
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.retrieval.index import structures
from nearfar.retrieval.index.files import LOCK_NAME, VERIFIED_NAME, acquire_writer_lock, os_errors
from nearfar.retrieval.index.manifest import (
    MANIFEST_NAME,
    Codec,
    Manifest,
    Versions,
    read_manifest,
    write_manifest,
)
from nearfar.retrieval.index.segments import DocumentLike, file_entry, write_segment
from nearfar.retrieval.index.snapshot import Snapshot
from nearfar.retrieval.index.vectors import Float32

_SEGMENTS = "segments"
_WRITTEN_NAME = re.compile(r"(codec-)?\d{8,}(\.faiss)?")


class Writer:
    """Holds the writer's lock of an index from its making to `close`.

    Args:
        folder: of the index; it must exist.

    Raises:
        InputError: another writer holds the lock.
        DataFileError: the folder may not be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = acquire_writer_lock(folder)

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> Writer:
        """Make the folder if need be, check that it is empty and write its first manifest."""
        with os_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise DataFileError(folder, "is a file; an index needs a folder")
            folder.mkdir(parents=True, exist_ok=True)
        _require_empty(folder)
        writer = cls(folder)
        try:
            _require_empty(folder)  # again: another process may have created an index before the lock was ours
            with os_errors(folder):
                write_manifest(folder, manifest)
        except BaseException:
            writer.close()
            raise
        return writer

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def recover(self) -> Manifest:
        """Read the manifest and remove what it does not name."""
        manifest = read_manifest(self._folder)
        _remove_unreferenced(self._folder, manifest)
        return manifest

    def add(
        self, snapshot: Snapshot, matrix: Float32, ids: list[str], documents: Sequence[DocumentLike] | None
    ) -> Snapshot:
        """Write a segment of (n, d) checked vectors, commit it and return the next generation.

        When anything fails, what the manifest on the disk does not name is removed, and `snapshot` stays valid.
        """
        manifest = snapshot.manifest
        generation = manifest.generation + 1
        with self._transaction(manifest):
            codec, ivf = manifest.codec, None
            if structures.wants_ivf(manifest.factory, len(matrix)):
                codec, ivf = self._codec(manifest, matrix)
                ivf.add(matrix)
            name = f"{_SEGMENTS}/{generation:08d}"
            segment = write_segment(self._folder, name, matrix, ids, documents, ivf)
            changed = {
                "generation": generation,
                "count": manifest.count + len(ids),
                "codec": codec,
                "segments": (*manifest.segments, segment),
                "versions": versions(),
            }
            after = manifest.model_copy(update=changed)
            write_manifest(self._folder, after)
        return snapshot.extended(after, ids)

    def set_thresholds(self, snapshot: Snapshot, thresholds: Mapping[str, ThresholdCard]) -> Snapshot:
        """Commit these threshold cards in place of the earlier ones and return the next generation."""
        manifest = snapshot.manifest
        changed = {"generation": manifest.generation + 1, "thresholds": dict(thresholds), "versions": versions()}
        after = manifest.model_copy(update=changed)
        with self._transaction(manifest):
            write_manifest(self._folder, after)
        return snapshot.extended(after, [])

    def _codec(self, manifest: Manifest, matrix: Float32) -> tuple[Codec, Any]:
        """The trained, empty inverted file: the one that the index has, or a new one trained on `matrix`."""
        if manifest.codec is not None:
            file = manifest.codec.file
            path = self._folder / file.path
            return manifest.codec, structures.read_faiss(path, file.size, 0, manifest.dimension, manifest.metric)
        ivf = structures.train_ivf(matrix, manifest.metric)
        path = self._folder / f"{_SEGMENTS}/codec-{manifest.generation + 1:08d}.faiss"
        path.parent.mkdir(exist_ok=True)
        structures.write_faiss(ivf, path)
        return Codec(file=file_entry(self._folder, path), nlist=ivf.nlist, trained_on=len(matrix)), ivf

    @contextmanager
    def _transaction(self, manifest: Manifest) -> Iterator[None]:
        found = read_manifest(self._folder).generation
        if found != manifest.generation:
            raise InputError(
                f"index {str(self._folder)!r} is at generation {found} and this object at {manifest.generation}; "
                "open it again"
            )
        try:
            with os_errors(self._folder):
                yield
        except BaseException:
            # The manifest on the disk decides: a failure may have come after it was replaced.
            with suppress(NearfarError, OSError):  # what went wrong first is what the user needs to read
                self.recover()
            raise


def versions() -> Versions:
    """The versions that write a generation."""
    import faiss

    return Versions(nearfar=__version__, faiss=faiss.__version__)


def check_ids(ids: Sequence[str], rows: int, snapshot: Snapshot) -> list[str]:
    """Return `ids` as `rows` distinct strings that are new to the index.

    Raises:
        DuplicateIdError: an id occurs twice or is in the index.
        InputError: an id is no string or empty, there are none, or not one for each row.
    """
    if isinstance(ids, str):
        raise InputError(f"ids must be a list of strings, got the string {ids!r}")
    names = list(ids)
    if len(names) != rows:
        raise InputError(f"{rows} vectors and {len(names)} ids: give one id for each vector")
    if not names:
        raise InputError("nothing to add: there are no vectors")
    seen: set[str] = set()
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InputError(f"ids must be non-empty strings, got {name!r} in row {row}")
        if name in seen:
            raise DuplicateIdError(f"id {name!r} occurs twice in one add; give every vector its own id")
        if name in snapshot:
            raise DuplicateIdError(f"id {name!r} is in the index already; leave it out")
        seen.add(name)
    return [str(name) for name in names]  # numpy's own string type becomes str


def check_documents(documents: Sequence[DocumentLike] | None, ids: list[str]) -> None:
    """Raise `InputError` unless document i has the id i."""
    if documents is None:
        return
    if len(documents) != len(ids):
        raise InputError(f"{len(ids)} ids and {len(documents)} documents: give one document for each id")
    for row, (document, name) in enumerate(zip(documents, ids, strict=True)):
        if document.id != name:
            raise InputError(f"row {row} has id {name!r} and a document with id {document.id!r}; they must agree")


def _require_empty(folder: Path) -> None:
    with os_errors(folder):
        names = {path.name for path in folder.iterdir()}
    if MANIFEST_NAME in names:
        raise DataFileError(
            folder, "holds an index already; open it with writable=True to add, or choose another folder"
        )
    if foreign := sorted(name for name in names if name != LOCK_NAME and not _is_temporary(name)):
        raise DataFileError(folder, f"is not empty (it holds {foreign[0]!r}); choose an empty folder")


def _is_temporary(name: str) -> bool:
    return name.startswith((f"{MANIFEST_NAME}.", f"{VERIFIED_NAME}.")) and name.endswith(".tmp")


def _remove_unreferenced(folder: Path, manifest: Manifest) -> None:
    """Remove what a writer that died left behind; only names that a writer gives are touched."""
    kept = {segment.name for segment in manifest.segments} | {file.path for file in manifest.files()}
    leftovers = [path for path in folder.iterdir() if _is_temporary(path.name)]
    for path in (folder / _SEGMENTS).glob("*"):
        if _WRITTEN_NAME.fullmatch(path.name) and path.relative_to(folder).as_posix() not in kept:
            leftovers.append(path)
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()

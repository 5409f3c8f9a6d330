"""Durable files: atomic replacement, hashes, the writer's lock, and typed errors for what a disk can refuse."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import DataFileError, IndexCorruptError, InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_NAME = ".lock"
VERIFIED_NAME = ".verified.json"
LOCK_TIMEOUT = 1.0  # seconds; a second writer is told at once rather than left waiting for a long build
_RACY_NS = 2_000_000_000  # a file changed later than this before hashing could change again unseen by its times
_BLOCK = 1 << 20


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a `DataFileError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataFileError(path, _explain(error)) from error


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and try again (the index is as it was before)"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "permission denied; change the permissions or choose another folder"
    return f"{error.strerror or error}"


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, force it to the disk and move it over `path` in one step."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a private file; readers of the folder must be able to read the manifest.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)  # noqa: PTH105  (one name to watch in tests of failing writes)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_size(path: Path, size: int) -> None:
    """Raise `IndexCorruptError` unless `path` is a file of `size` bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise IndexCorruptError(f"{path}: the file is missing; restore it or build the index again") from None
    except OSError as error:
        raise DataFileError(path, _explain(error)) from error
    if found != size:
        raise IndexCorruptError(
            f"{path}: {found} bytes instead of {size}; the file was truncated or altered, "
            "restore it or build the index again"
        )


def check_hash(path: Path, expected: str) -> None:
    """Raise `IndexCorruptError` unless the content of `path` has the hash `expected`."""
    with os_errors(path):
        found = sha256(path)
    if found != expected:
        raise IndexCorruptError(
            f"{path}: SHA-256 {found[:12]}... instead of {expected[:12]}...; the file was altered, "
            "restore it or build the index again"
        )


class VerifiedFiles:
    """Remembers which files were hashed, so that a large index is hashed once and not at every opening.

    A file counts as unchanged while its inode, size, modification and change times stay the same (as git does
    for its own index). The memory is a small file beside the manifest, written when the folder allows it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / VERIFIED_NAME
        self._known = self._read()
        self._changed = False

    def _read(self) -> dict[str, list[str | int]]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def check(self, path: Path, name: str, expected: str) -> None:
        """Raise `IndexCorruptError` unless the file has the hash `expected` now or had it when last hashed."""
        stat = path.stat()
        state: list[str | int] = [expected, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if self._known.get(name) == state:
            return
        check_hash(path, expected)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RACY_NS:
            self._known[name] = state
            self._changed = True

    def save(self) -> None:
        """Write the memory; a folder that cannot be written only costs the next opening some time."""
        if self._changed:
            with suppress(OSError):
                replace_file(self._path, json.dumps(self._known).encode())


def acquire_writer_lock(folder: Path) -> BaseFileLock:
    """Take the writer's lock of an index, or raise `InputError` when another writer holds it."""
    from filelock import FileLock, Timeout

    # The holder may close the index from another thread than the one that opened it.
    lock = FileLock(folder / LOCK_NAME, timeout=LOCK_TIMEOUT, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"index {str(folder)!r} is being written by another process or object; close that one first"
        ) from None
    except OSError as error:
        raise DataFileError(folder, _explain(error)) from error
    return lock

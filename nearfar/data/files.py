"""Reading lines and writing files: every failure names its place, and no file is ever half written."""

from __future__ import annotations

import gzip
import io
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from nearfar.errors import DataFileError

BYTE_ORDER_MARK = "\ufeff"


class Place(NamedTuple):
    """Where in a file a value stands, so that an error can say so.

    Args:
        path: the file.
        number: counted from 1.
        unit: "line" for text files, "row" where a file has no lines.
    """

    path: Path
    number: int
    unit: str = "line"

    def error(self, problem: str) -> DataFileError:
        """Return the error for this place; the caller raises it."""
        if self.unit == "line":
            return DataFileError(self.path, problem, line=self.number)
        return DataFileError(self.path, f"{self.unit} {self.number}: {problem}")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system or a decompressor raises in the block into a DataFileError on `path`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            problem = "no such file or folder"
        elif isinstance(error, IsADirectoryError):
            problem = "this is a folder, and a file is expected"
        elif isinstance(error, PermissionError):
            problem = "permission denied; check who owns the file and its folder"
        elif isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
            problem = f"not a whole gzip file ({error}); compress it again or drop the .gz ending"
        else:
            problem = error.strerror or str(error)
        raise DataFileError(path, problem) from error


def read_lines(path: str | Path) -> Iterator[tuple[Place, str]]:
    r"""Yield each line of a UTF-8 file with its place, one at a time, its line end kept.

    Lines end at ``\n`` only, so that a carriage return inside a quoted CSV field survives. A byte order mark
    is dropped, and a name that ends in ``.gz`` is decompressed on the way.

    Raises:
        DataFileError: the file cannot be opened or read, or a line is not UTF-8.
    """
    path = Path(path)
    with named_errors(path), _open_for_reading(path) as stream:
        for number, raw in enumerate(stream, start=1):
            place = Place(path, number)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"{error.reason} at byte {error.start + 1} of the line"
                raise place.error(f"not UTF-8 text ({where}); save the file as UTF-8") from error
            yield place, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def content_lines(path: str | Path) -> Iterator[tuple[Place, str]]:
    """Yield the lines of `read_lines` that are not blank, without their line ends."""
    for place, line in read_lines(path):
        if line.strip():
            yield place, line.rstrip("\r\n")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it replaces `path` when the block ends without an error.

    Missing parent folders are made. After an error the temporary file is removed and `path` is as it was.

    Raises:
        DataFileError: the folder or file cannot be written, or a text holds half of a surrogate pair.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)  # noqa: PTH105 - the name of the system call says that it is atomic
            _sync(path.parent)
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise DataFileError(path, f"{character!r} is half a character and has no UTF-8 form; remove it") from error
    finally:
        with suppress(OSError):  # gone already, or the folder is not one: the first error is the one to show
            temporary.unlink()


@contextmanager
def writing_text(path: str | Path) -> Iterator[TextIO]:
    r"""Open a UTF-8 text file that replaces `path` at the end; ``\n`` stays as it is, ``.gz`` compresses."""
    with replacing(path) as temporary, temporary.open("xb") as raw:
        # A fixed time and no name in the gzip header: the same content gives the same bytes.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if Path(path).suffix.lower() == ".gz" else raw
        with packed, io.TextIOWrapper(cast(BinaryIO, packed), encoding="utf-8", newline="") as text:
            yield text


def _open_for_reading(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

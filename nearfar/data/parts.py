"""A Parquet file written part by part, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nearfar.data.files import named_errors, replacing
from nearfar.errors import DataFileError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA = b"nearfar"
_MANIFEST = "parts.json"
_LOCK = "lock"
_PART = re.compile(r"part-(\d{8,})\.parquet")
_ROW_GROUP = 65_536  # rows; what the joined file has in memory at a time


class PartFolder:
    """Numbered parts of a Parquet file beside it, joined when all are there; a context manager that locks them.

    Each part is written whole or not at all, so whatever interrupts a run, the parts that exist are sound. Parts of a
    run with another key are removed at the start: they answer another question.

    Args:
        path: the Parquet file; the parts lie in the folder ``<path>.parts`` until it is written.
        key: says what the file holds; everything it depends on must be in it.
        layout: says how it is cut into parts; what is cut otherwise is not taken up either.

    Raises:
        DataFileError: the file's name does not end in .parquet, it is something that no PartFolder wrote, or its
            folder may not be written.
        InputError: another process is writing the same file.

    Example:
        >>> import pathlib, tempfile, pyarrow as pa
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.parquet"
        >>> with PartFolder(path, "all of it") as parts:
        ...     parts.write(0, pa.table({"n": [1, 2]}), {"rows": 2})
        ...     parts.join(pa.schema([("n", pa.int64())]), {"rows": 2})
        >>> finished_summary(path, "all of it")
        {'rows': 2}
    """

    def __init__(self, path: str | Path, key: str, layout: str = "") -> None:
        self.path = Path(path)
        self.key = key
        self._contents = {"key": key, "layout": layout}
        self.folder = self.path.with_name(self.path.name + ".parts")
        check_output(self.path)

    def __enter__(self) -> PartFolder:
        from filelock import FileLock, Timeout

        with named_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / _LOCK, timeout=0)
            try:
                self._lock.acquire()
            except Timeout:
                raise InputError(f"{self.path} is being written by another process; wait for it to end") from None
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _begin(self) -> None:
        manifest = self.folder / _MANIFEST
        if _read_manifest(manifest) == self._contents:
            return
        with named_errors(self.folder):
            for _, part in self._parts():
                part.unlink()
        with replacing(manifest) as temporary:
            temporary.write_text(json.dumps(self._contents) + "\n", encoding="utf-8")

    def finished(self) -> dict[int, dict[str, Any]]:
        """Number -> summary of the parts that are there."""
        return {number: _summary(part) for number, part in self._parts()}

    def write(self, number: int, table: pa.Table, summary: Mapping[str, Any]) -> None:
        """Write part `number` with what `finished` shall return for it."""
        import pyarrow.parquet as pq

        with replacing(self.folder / f"part-{number:08d}.parquet") as temporary:
            pq.write_table(table.replace_schema_metadata(_with({}, summary)), temporary)

    def join(self, schema: pa.Schema, summary: Mapping[str, Any]) -> None:
        """Write the file from all parts in their order, and remove the parts."""
        import pyarrow.parquet as pq

        described = schema.with_metadata(_with({"key": self.key}, summary))
        with replacing(self.path) as temporary, pq.ParquetWriter(temporary, described) as writer:
            for table in self._row_groups(schema):
                writer.write_table(table.replace_schema_metadata(described.metadata))
        self.discard()

    def discard(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _row_groups(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting: list[pa.Table] = []
        for _, part in self._parts():
            waiting.append(pq.read_table(part).cast(schema))
            if sum(table.num_rows for table in waiting) >= _ROW_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []
        yield pa.concat_tables([*waiting, schema.empty_table()])

    def _parts(self) -> list[tuple[int, Path]]:
        found = [(match, path) for path in self.folder.iterdir() if (match := _PART.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in found)


def check_output(path: Path) -> None:
    """Raise `DataFileError` unless `path` may become a Parquet file: new, or written by a `PartFolder`."""
    if path.suffix.lower() != ".parquet":
        raise DataFileError(path, f"unknown kind of file {path.suffix!r}; use .parquet")
    if path.is_dir():
        raise DataFileError(path, "this is a folder, and a file is to be written; choose another name")
    if path.exists() and "key" not in _metadata(path):
        raise DataFileError(path, "exists, and is not a file that this command wrote; choose another name")


def finished_summary(path: Path, key: str) -> dict[str, Any] | None:
    """The summary of a file that was joined under this key; None if there is none."""
    found = _metadata(path) if path.exists() else {}
    return found["summary"] if found.get("key") == key else None


def _with(content: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {_METADATA: json.dumps({**content, "summary": dict(summary)}).encode()}


def _summary(part: Path) -> dict[str, Any]:
    found: dict[str, Any] = _metadata(part).get("summary", {})
    return found


def _metadata(path: Path) -> dict[str, Any]:
    """What a `PartFolder` wrote into the file's schema; empty for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with named_errors(path):
            found = json.loads((pq.read_schema(path).metadata or {}).get(_METADATA, b"{}"))
    except (pa.ArrowException, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_manifest(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None

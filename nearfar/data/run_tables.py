"""Runs and relevance judgements in Parquet tables, one row for each query and document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nearfar.data.fields import as_key, shown
from nearfar.data.files import Place, named_errors
from nearfar.errors import DataFileError

_Value = TypeVar("_Value", int, float)


def load_parquet_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a run from the columns ``query_id``, ``doc_id`` and ``score``; other columns are ignored.

    Args:
        path: the Parquet file. Ids are strings or integers (which become their digits), scores any numbers.

    Returns:
        query id -> document id -> score, in file order.

    Raises:
        DataFileError: the file is missing, unreadable or empty, or lacks a column; or, with the row, an id is neither
            string nor integer, a score is no number, or a document comes twice for one query.

    Example:
        >>> import tempfile, pathlib, pyarrow as pa, pyarrow.parquet as pq
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.parquet"
        >>> pq.write_table(pa.table({"query_id": ["q1", "q1"], "doc_id": [7, 9], "score": [2.0, 1.5]}), path)
        >>> load_parquet_run(path)
        {'q1': {'7': 2.0, '9': 1.5}}
    """
    return _load(Path(path), "score", _as_score)


def load_parquet_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read relevance judgements from the columns ``query_id``, ``doc_id`` and ``grade``.

    Args:
        path: the Parquet file. Ids are strings or integers (which become their digits), grades integers.

    Returns:
        query id -> document id -> grade, in file order.

    Raises:
        DataFileError: as for `load_parquet_run`, or a grade is no integer.

    Example:
        >>> import tempfile, pathlib, pyarrow as pa, pyarrow.parquet as pq
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "qrels.parquet"
        >>> pq.write_table(pa.table({"query_id": ["q1"], "doc_id": ["d1"], "grade": [2]}), path)
        >>> load_parquet_qrels(path)
        {'q1': {'d1': 2}}
    """
    return _load(Path(path), "grade", _as_grade)


def _load(path: Path, column: str, convert: Callable[[Any, Place], _Value]) -> dict[str, dict[str, _Value]]:
    table: dict[str, dict[str, _Value]] = {}
    for number, (query, document, value) in enumerate(_rows(path, ("query_id", "doc_id", column)), start=1):
        place = Place(path, number, "row")
        query, document = as_key(query, "query_id", place), as_key(document, "doc_id", place)
        values = table.setdefault(query, {})
        if document in values:
            raise place.error(f"document {document!r} comes twice for query {query!r}; keep one of the rows")
        values[document] = convert(value, place)
    if not table:
        raise DataFileError(path, f"the table is empty; expected rows of query_id, doc_id, {column}")
    return table


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with named_errors(path), path.open("rb") as stream, pq.ParquetFile(stream) as table:
            found = table.schema_arrow.names
            missing = [name for name in columns if name not in found]
            if missing:
                raise DataFileError(path, f"no column {missing[0]!r}; columns found: {', '.join(found) or 'none'}")
            for batch in table.iter_batches(columns=list(columns)):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except pa.ArrowException as error:
        raise DataFileError(path, f"not a whole Parquet file ({error})") from error


def _as_score(value: object, place: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise place.error(f"the score must be a number, found {shown(value)}")
    return float(value)


def _as_grade(value: object, place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise place.error(f"the relevance grade must be an integer, found {shown(value)}")
    return value

"""Labelled texts and training pairs in tables: JSONL, CSV or Parquet, chosen by the file's ending."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nearfar.data.documents import LabelledTexts, TrainingPairs
from nearfar.data.fields import as_key, as_text, json_records, take
from nearfar.data.files import Place, named_errors, read_lines, replacing, writing_text
from nearfar.errors import DataFileError, InputError

_ENDINGS = (".jsonl", ".csv", ".parquet")


def load_labelled(path: str | Path) -> LabelledTexts:
    """Read texts with a class each, from columns ``text`` and ``label``; other columns are ignored.

    Args:
        path: ``.jsonl`` or ``.csv`` (either may end in ``.gz`` too), or ``.parquet``. Labels are strings or
            integers (which become their digits).

    Raises:
        DataFileError: the file is missing, unreadable, empty or of another kind; a column is missing; or,
            with the line (the row in Parquet), a text is blank or a label is neither string nor integer.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "texts.csv"
        >>> write_labelled(LabelledTexts(["heart attack", "MI"], ["22", "22"]), path)
        >>> load_labelled(path)
        LabelledTexts(texts=['heart attack', 'MI'], labels=['22', '22'])
    """
    texts, labels = [], []
    for place, row in _rows(path, ("text", "label")):
        texts.append(as_text(take(row, "text", place), "text", place))
        labels.append(as_key(take(row, "label", place), "label", place))
    _require_rows(path, len(texts), "text, label")
    return LabelledTexts(texts, labels)


def write_labelled(data: LabelledTexts, path: str | Path) -> None:
    """Write labelled texts as ``.jsonl``, ``.csv`` or ``.parquet``; the file is replaced whole.

    Raises:
        InputError: there are no texts.
        DataFileError: a text or label is blank (with its row), the ending is another, or the file cannot be
            written.
    """
    _write_columns(path, {"text": data.texts, "label": data.labels})


def load_pairs(path: str | Path) -> TrainingPairs:
    """Read training pairs from columns ``query``, ``document`` and optionally ``label``.

    Args:
        path: ``.jsonl`` or ``.csv`` (either may end in ``.gz`` too), or ``.parquet``. Without a label column,
            rows with the same document share a label, so that they are never each other's negatives.

    Raises:
        DataFileError: as for `load_labelled`, or only some lines have a label.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.jsonl"
        >>> _ = path.write_text('{"query": "heart attack", "document": "Myocardial infarction"}')
        >>> load_pairs(path)
        TrainingPairs(queries=['heart attack'], documents=['Myocardial infarction'], labels=['0'])
    """
    queries, documents, labels = [], [], []
    numbers: dict[str, str] = {}  # document text -> label
    labelled: bool | None = None
    for place, row in _rows(path, ("query", "document"), optional=("label",)):
        labelled = "label" in row if labelled is None else labelled
        if labelled != ("label" in row):
            raise place.error(f"the label is {'missing' if labelled else 'new'} here; label all rows or none")
        queries.append(as_text(take(row, "query", place), "query", place))
        documents.append(as_text(take(row, "document", place), "document", place))
        group = numbers.setdefault(documents[-1], str(len(numbers)))
        labels.append(as_key(row["label"], "label", place) if labelled else group)
    _require_rows(path, len(queries), "query, document")
    return TrainingPairs(queries, documents, labels)


def write_pairs(pairs: TrainingPairs, path: str | Path) -> None:
    """Write training pairs and labels as ``.jsonl``, ``.csv`` or ``.parquet``; the file is replaced whole.

    Raises:
        InputError: there are no pairs.
        DataFileError: a value is blank (with its row), the ending is another, or the file cannot be written.
    """
    _write_columns(path, {"query": pairs.queries, "document": pairs.documents, "label": pairs.labels})


def _rows(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[Place, dict[str, Any]]]:
    path = Path(path)
    ending = _ending(path)
    if ending == ".jsonl":
        return json_records(path)
    if ending == ".csv":
        return _csv_rows(path, required)
    return _parquet_rows(path, required, optional)


def _csv_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        place = Place(path, reader.line_num + 1)  # a quoted field may span lines: name the first
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise place.error(f"not CSV ({error}); check the quotes, or use JSONL for very long texts") from error
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if header is None:
            header = [name.strip() for name in fields]
            _require_columns(path, header, required)
        elif len(fields) != len(header):
            raise place.error(f"expected {len(header)} columns ({', '.join(header)}), found {len(fields)}")
        else:
            yield place, dict(zip(header, fields, strict=True))


def _parquet_rows(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with named_errors(path), path.open("rb") as stream, pq.ParquetFile(stream) as table:
            found = table.schema_arrow.names
            _require_columns(path, found, required)
            wanted = [*required, *(name for name in optional if name in found)]
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(path, number, "row"), row
    except pa.ArrowException as error:
        raise DataFileError(path, f"not a whole Parquet file ({error})") from error


def _write_columns(path: str | Path, columns: dict[str, list[str]]) -> None:
    path = Path(path)
    ending = _ending(path)
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        raise InputError(f"there are no rows to write to {path}")
    for number, row in enumerate(rows, start=1):
        for name, value in zip(columns, row, strict=True):
            as_text(value, name, Place(path, number, "row"))  # what would not be read is not written
    if ending == ".parquet":
        _write_parquet(path, columns)
        return
    with writing_text(path) as stream:
        if ending == ".csv":
            csv.writer(stream).writerows([tuple(columns), *rows])
        else:
            objects = (dict(zip(columns, row, strict=True)) for row in rows)
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in objects)


def _write_parquet(path: Path, columns: dict[str, list[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.large_string()) for name in columns])
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)


def _ending(path: Path) -> str:
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending not in _ENDINGS:
        raise DataFileError(path, f"unknown kind of file {path.suffix!r}; use {', '.join(_ENDINGS)}")
    return ending


def _require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in found]
    if missing:
        raise DataFileError(path, f"no column {missing[0]!r}; columns found: {', '.join(found) or 'none'}")


def _require_rows(path: str | Path, rows: int, columns: str) -> None:
    if not rows:
        raise DataFileError(path, f"the file is empty; expected rows with {columns}")

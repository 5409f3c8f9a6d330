"""Checks on single values read from, or about to be written to, a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nearfar.data.files import Place, content_lines

_INTEGER = re.compile(r"[+-]?[0-9]+")


def json_records(path: str | Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the JSON object of each line that is not blank, with its place.

    Raises:
        DataFileError: a line is not JSON, or is JSON but not an object.
    """
    for place, line in content_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise place.error(f"not JSON ({error}); each line holds one JSON object") from error
        if not isinstance(record, dict):
            raise place.error(f"a JSON object is expected, found {shown(record)}")
        yield place, record


def take(record: dict[str, Any], name: str, place: Place) -> Any:
    """Return the value under `name`; the error names the keys that are there."""
    if name not in record:
        found = ", ".join(map(str, record)) or "nothing"
        raise place.error(f"{name!r} is missing; found: {found}")
    return record[name]


def as_text(value: object, name: str, place: Place, *, blank: bool = False) -> str:
    """Return `value` if it is a string that can be encoded; blank strings pass only where `blank` is true."""
    if not isinstance(value, str):
        raise place.error(f"{name!r} must be a string, found {shown(value)}")
    if not blank and not value.strip():
        raise place.error(f"{name!r} is blank; give it a text or remove the {place.unit}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise place.error(f"{name!r} holds {value[error.start]!r}, half a character; remove it") from error
    return value


def as_key(value: object, name: str, place: Place) -> str:
    """Return an id or label as a string.

    Integers become their digits. Other numbers, booleans and null are refused: 1.0, 1e0 and 1 could each be
    meant by another spelling, and qrels name ids by their spelling.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise place.error(f"{name!r} must be a string or an integer, found {shown(value)}; put it in quotes")
    return as_text(value, name, place)


def as_grade(text: str, place: Place) -> int:
    """Return the integer that a relevance grade spells."""
    if not _INTEGER.fullmatch(text) or len(text) > 18:
        raise place.error(f"the relevance grade must be an integer, found {text!r}")
    return int(text)


def shown(value: object) -> str:
    """Show a value in an error, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

"""TREC run and qrels files, as trec_eval reads them (https://trec.nist.gov/trec_eval/)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from nearfar.data.fields import as_grade
from nearfar.data.files import Place, content_lines, writing_text
from nearfar.errors import DataFileError, InputError

# ASCII white space only, as in trec_eval: a no-break space may be part of an id.
_FIELDS = re.compile(r"\S+", re.ASCII)
_NOT_A_FIELD = re.compile(r"\s|\ufeff", re.ASCII)


def load_trec_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a run: lines of ``query Q0 document rank score tag``. Scores decide the order, ranks are ignored.

    Args:
        path: the file; ``.gz`` is decompressed.

    Returns:
        query id -> document id -> score, in file order.

    Raises:
        DataFileError: the file is missing, unreadable or empty; or, with the line, it does not have six
            columns, a score is not a number, or a document comes twice for one query.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "bm25.run"
        >>> write_trec_run({"q1": {"d1": 0.5, "d2": 1.5}}, path)
        >>> load_trec_run(path)
        {'q1': {'d2': 1.5, 'd1': 0.5}}
    """
    run: dict[str, dict[str, float]] = {}
    for place, line in content_lines(path):
        query, _, document, _, score, _ = _fields(line, "query Q0 document rank score tag", place)
        scores = run.setdefault(query, {})
        if document in scores:
            raise place.error(f"document {document!r} comes twice for query {query!r}; keep one of the lines")
        scores[document] = _as_score(score, place)
    if not run:
        raise DataFileError(path, "the run is empty; expected lines of: query Q0 document rank score tag")
    return run


def write_trec_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str = "nearfar") -> None:
    """Write a run, best document first; equal scores by document id descending, as trec_eval orders them.

    Scores are written with all their digits, so that `load_trec_run` returns the same numbers. A query
    without documents leaves no line, since the format cannot express it.

    Args:
        run: query id -> document id -> score.
        path: the file, replaced whole; ``.gz`` compresses.
        tag: the name of the system, written on every line.

    Raises:
        InputError: an id or the tag is empty or holds white space, a score is NaN, or no query has a
            document.
        DataFileError: the file cannot be written.
    """
    if not any(run.values()):
        raise InputError("the run is empty: no query has a document")
    _require_field("tag", tag)
    with writing_text(path) as stream:
        for query, scores in run.items():
            _require_field("query id", query)
            # Code points sort as UTF-8 bytes do, which is how trec_eval compares ids.
            ranked = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
            for rank, (document, score) in enumerate(ranked, start=1):
                _require_field("document id", document)
                if math.isnan(score):
                    raise InputError(f"the score of document {document!r} for query {query!r} is NaN")
                stream.write(f"{query} Q0 {document} {rank} {float(score)!r} {tag}\n")


def load_trec_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read relevance judgements: lines of ``query 0 document grade``.

    A line may be repeated; two different grades for one pair are refused.

    Args:
        path: the file; ``.gz`` is decompressed.

    Returns:
        query id -> document id -> grade, in file order. Negative grades are kept.

    Raises:
        DataFileError: the file is missing, unreadable or empty; or, with the line, it does not have four
            columns, a grade is not an integer, or a pair has two grades.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "qrels"
        >>> write_trec_qrels({"q1": {"d1": 2, "d2": 0}}, path)
        >>> load_trec_qrels(path)
        {'q1': {'d1': 2, 'd2': 0}}
    """
    qrels: dict[str, dict[str, int]] = {}
    for place, line in content_lines(path):
        query, _, document, grade = _fields(line, "query 0 document grade", place)
        add_judgement(qrels, query, document, grade, place)
    if not qrels:
        raise DataFileError(path, "the qrels are empty; expected lines of: query 0 document grade")
    return qrels


def write_trec_qrels(qrels: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Write relevance judgements as ``query 0 document grade``, in the order of the mapping.

    Args:
        qrels: query id -> document id -> grade. A query without judgements leaves no line.
        path: the file, replaced whole; ``.gz`` compresses.

    Raises:
        InputError: an id is empty or holds white space, or there is no judgement.
        DataFileError: the file cannot be written.
    """
    if not any(qrels.values()):
        raise InputError("the qrels are empty: no query has a judgement")
    with writing_text(path) as stream:
        for query, grades in qrels.items():
            _require_field("query id", query)
            for document, grade in grades.items():
                _require_field("document id", document)
                stream.write(f"{query} 0 {document} {int(grade)}\n")


def add_judgement(qrels: dict[str, dict[str, int]], query: str, document: str, grade: str, place: Place) -> None:
    """Add one judgement read from a file; refuses a grade that contradicts an earlier line."""
    value = as_grade(grade, place)
    earlier = qrels.setdefault(query, {}).setdefault(document, value)
    if earlier != value:
        raise place.error(f"query {query!r}, document {document!r} has grade {value}, and {earlier} further up")


def _fields(line: str, expected: str, place: Place) -> list[str]:
    fields = _FIELDS.findall(line)
    wanted = len(expected.split())
    if len(fields) != wanted:
        raise place.error(f"expected {wanted} columns ({expected}), found {len(fields)}")
    return fields


def _as_score(text: str, place: Place) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    # Python also reads "1_0" as a number; no other tool does.
    if math.isnan(score) or "_" in text:
        raise place.error(f"the score must be a number, found {text!r}")
    return score


def _require_field(kind: str, value: str) -> None:
    if not value or _NOT_A_FIELD.search(value):
        raise InputError(f"{kind} {value!r} is empty or holds white space, which a TREC file cannot store; rename it")

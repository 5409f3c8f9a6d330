"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv (https://arxiv.org/abs/2104.08663)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nearfar.data.documents import Document, RetrievalDataset
from nearfar.data.fields import as_key, as_text, json_records, take
from nearfar.data.files import Place, content_lines, named_errors, writing_text
from nearfar.data.trec import add_judgement
from nearfar.errors import DataFileError, InputError

_HEADER = ("query-id", "corpus-id", "score")
_T = TypeVar("_T")


def iter_corpus(path: str | Path) -> Iterator[Document]:
    """Read a corpus one document at a time; only the ids seen so far are kept, to find duplicates.

    Each line is a JSON object with ``_id``, ``text`` and optionally ``title``. Ids are strings or integers
    (which become their digits). Real collections hold empty documents, so an empty ``text`` is accepted, a
    missing one not.

    Args:
        path: a ``corpus.jsonl`` (or ``.jsonl.gz``), or the BEIR folder that holds it.

    Yields:
        The documents in file order.

    Raises:
        DataFileError: when reading begins, the file is missing or empty; later, with its line, a line is
            malformed or repeats an id.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "corpus.jsonl"
        >>> _ = path.write_text('{"_id": "d1", "title": "Ulna", "text": "A bone of the forearm."}')
        >>> [document.content for document in iter_corpus(path)]
        ['Ulna. A bone of the forearm.']
    """
    path = Path(path)
    with named_errors(path):
        file = _find(path, "corpus.jsonl") if path.is_dir() else path
    return (document for _, document in _unique(file, _document))


def load_beir(folder: str | Path, split: str = "test") -> RetrievalDataset:
    """Load a BEIR folder into memory.

    The qrels have three columns separated by tabs, with or without the header ``query-id corpus-id score``.

    Args:
        folder: holds ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``; each may end in ``.gz``.
        split: which qrels to read. Queries without a judgement in this split are left out, as BEIR does.

    Returns:
        The data set, named after the folder.

    Raises:
        DataFileError: a file is missing, unreadable, empty or malformed (with the line), or the qrels name
            queries or documents that the folder does not hold.

    Example:
        >>> import tempfile
        >>> corpus = {"d1": Document("d1", "A bone of the forearm.", title="Ulna")}
        >>> folder = tempfile.mkdtemp()
        >>> write_beir(RetrievalDataset(corpus, {"q1": "elbow bone"}, {"q1": {"d1": 1}}, "bones"), folder)
        >>> load_beir(folder).qrels
        {'q1': {'d1': 1}}
    """
    folder = Path(folder)
    qrels_file = _find(folder, f"qrels/{_split_name(split)}.tsv", hint=_splits_hint(folder))
    queries = dict(_unique(_find(folder, "queries.jsonl"), _query))
    corpus = {document.id: document for document in iter_corpus(folder)}
    qrels = _load_qrels(qrels_file, queries, corpus)
    return RetrievalDataset(corpus, {id_: queries[id_] for id_ in qrels}, qrels, folder.resolve().name)


def write_beir(dataset: RetrievalDataset, folder: str | Path, split: str = "test") -> None:
    """Write a data set as a BEIR folder; each file is replaced whole, the qrels last.

    If the folder holds qrels of other splits, their documents and queries are kept beside the new ones.

    Args:
        dataset: what to write.
        folder: made if it is missing.
        split: names the qrels file.

    Raises:
        InputError: an id is empty or holds a tab or line end, a query is blank, or there is nothing to write.
        DataFileError: the folder holds another text under an id of the data set, or cannot be written.
    """
    folder = Path(folder)
    split = _split_name(split)
    if not (dataset.corpus and any(dataset.qrels.values())):
        raise InputError(f"data set {dataset.name!r} has no documents or no judgements; there is nothing to write")
    for id_ in (*dataset.corpus, *dataset.queries):
        if not id_.strip() or re.search(r"[\t\r\n]", id_):
            raise InputError(f"id {id_!r} is blank or holds a tab or line end, which BEIR's qrels cannot store")
    blank = [id_ for id_, text in dataset.queries.items() if not text.strip()]
    if blank:
        raise InputError(f"query {blank[0]!r} is blank ({len(blank)} such queries); remove it")
    corpus, queries = dataset.corpus, dataset.queries
    if set(_splits(folder)) - {split}:
        corpus = _merged(_find(folder, "corpus.jsonl"), _document, corpus)
        queries = _merged(_find(folder, "queries.jsonl"), _query, queries)
    documents = ({"_id": i, "title": d.title, "text": d.text} for i, d in corpus.items())
    _write_records(folder / "corpus.jsonl", documents)
    _write_records(folder / "queries.jsonl", ({"_id": i, "text": t} for i, t in queries.items()))
    with writing_text(folder / "qrels" / f"{split}.tsv") as stream:
        stream.write("\t".join(_HEADER) + "\n")
        for query, grades in dataset.qrels.items():
            stream.writelines(f"{query}\t{document}\t{int(grade)}\n" for document, grade in grades.items())


def _document(id_: str, record: dict[str, Any], place: Place) -> Document:
    text = as_text(take(record, "text", place), "text", place, blank=True)
    title = record.get("title")
    return Document(id_, text, "" if title is None else as_text(title, "title", place, blank=True))


def _query(id_: str, record: dict[str, Any], place: Place) -> str:
    return as_text(take(record, "text", place), "text", place)


def _unique(path: Path, make: Callable[[str, dict[str, Any], Place], _T]) -> Iterator[tuple[str, _T]]:
    """Yield (id, value) of each record; refuses a repeated id and an empty file."""
    seen: set[str] = set()
    for place, record in json_records(path):
        id_ = as_key(take(record, "_id", place), "_id", place)
        if id_ in seen:
            raise place.error(f"the id {id_!r} is used further up; ids must be unique")
        seen.add(id_)
        yield id_, make(id_, record, place)
    if not seen:
        raise DataFileError(path, "the file is empty; expected one JSON object with _id and text on each line")


def _load_qrels(path: Path, queries: Collection[str], corpus: Collection[str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    unknown: dict[str, dict[str, Place]] = {"query": {}, "document": {}}
    first = True
    for place, line in content_lines(path):
        fields = line.split("\t")
        if len(fields) != len(_HEADER):
            raise place.error(
                f"expected 3 columns separated by tabs ({', '.join(_HEADER)}), found {len(fields)}; "
                "qrels in TREC's format are read by load_trec_qrels"
            )
        query, document, grade = fields
        is_header, first = first and grade.strip().lower() == _HEADER[-1], False
        if is_header:
            continue
        add_judgement(qrels, query, document, grade.strip(), place)
        if query not in queries:
            unknown["query"].setdefault(query, place)
        if document not in corpus:
            unknown["document"].setdefault(document, place)
    for kind, places in unknown.items():
        if places:
            id_, place = next(iter(places.items()))
            raise place.error(
                f"{kind} {id_!r} is not among the {kind} ids of the folder ({len(places)} such ids in this "
                "file); add what is missing or remove these lines"
            )
    if not qrels:
        raise DataFileError(path, "the qrels are empty; expected lines of: query-id, corpus-id, score")
    return qrels


def _merged(path: Path, make: Callable[[str, dict[str, Any], Place], _T], new: dict[str, _T]) -> dict[str, _T]:
    merged = dict(_unique(path, make))
    for id_, value in new.items():
        if merged.setdefault(id_, value) != value:
            raise DataFileError(
                path,
                f"holds another text for id {id_!r}, and other splits use this file; write to a new folder",
            )
    return merged


def _write_records(path: Path, records: Iterable[dict[str, str]]) -> None:
    with writing_text(path) as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _find(folder: Path, name: str, hint: str = "") -> Path:
    plain, packed = folder / name, folder / f"{name}.gz"
    with named_errors(plain):
        for path in (plain, packed):
            if path.exists():
                return path
        if folder.is_dir():
            raise DataFileError(plain, f"no such file{hint}")
    raise DataFileError(folder, "no such folder; expected one with corpus.jsonl, queries.jsonl and qrels/")


def _splits(folder: Path) -> list[str]:
    names = (path.name.removesuffix(".gz") for path in (folder / "qrels").glob("*.tsv*"))
    return sorted({name.removesuffix(".tsv") for name in names if name.endswith(".tsv")})


def _splits_hint(folder: Path) -> str:
    splits = _splits(folder)
    return f"; splits found here: {', '.join(splits)}" if splits else "; the folder has no qrels/<split>.tsv"


def _split_name(split: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise InputError(f"split {split!r} is not a plain name such as 'test' or 'train'")
    return split

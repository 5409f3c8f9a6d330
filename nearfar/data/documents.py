"""What the readers return: documents, retrieval data sets, labelled texts and training pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nearfar.errors import InputError


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Args:
        id: unique within the corpus.
        text: the body; may be empty.
        title: may be empty.

    Example:
        >>> Document("d1", "A hole in the wall between the atria.", title="Atrial septal defect").content
        'Atrial septal defect. A hole in the wall between the atria.'
    """

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """What an encoder reads: "title. text", or the one of the two that is not empty."""
        return f"{self.title}. {self.text}" if self.title and self.text else self.title or self.text


@dataclass(frozen=True)
class RetrievalDataset:
    """A corpus, queries and relevance judgements.

    Args:
        corpus: document id -> document.
        queries: query id -> text.
        qrels: query id -> document id -> grade; a grade of 1 or more is relevant.
        name: shown in reports.

    Raises:
        InputError: the qrels name a query or document that is not there.

    Example:
        >>> corpus = {"d1": Document("d1", "Leonardo painted it."), "d2": Document("d2", "It is a fruit.")}
        >>> RetrievalDataset(corpus, {"q1": "who painted it?"}, {"q1": {"d1": 1}}, "tiny").name
        'tiny'
    """

    corpus: dict[str, Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    name: str

    def __post_init__(self) -> None:
        _require_known("query", self.qrels, self.queries)
        _require_known("document", (d for grades in self.qrels.values() for d in grades), self.corpus)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes.

    Args:
        texts: n texts.
        labels: n labels; text i belongs to class labels[i].

    Raises:
        InputError: the two lists differ in length.

    Example:
        >>> len(LabelledTexts(["heart attack", "myocardial infarction"], ["mi", "mi"]))
        2
    """

    texts: list[str]
    labels: list[str]

    def __post_init__(self) -> None:
        _require_equal_lengths(texts=self.texts, labels=self.labels)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TrainingPairs:
    """Queries, each with a document that answers it.

    Args:
        queries: n texts.
        documents: n texts; document i answers query i.
        labels: n labels; rows that share a label answer each other, so none of them is another's negative.

    Raises:
        InputError: the three lists differ in length.

    Example:
        >>> pairs = TrainingPairs(["heart attack", "MI"], ["Myocardial infarction"] * 2, ["mi", "mi"])
        >>> len(pairs)
        2
    """

    queries: list[str]
    documents: list[str]
    labels: list[str]

    def __post_init__(self) -> None:
        _require_equal_lengths(queries=self.queries, documents=self.documents, labels=self.labels)

    def __len__(self) -> int:
        return len(self.queries)


def pairs_from_dataset(dataset: RetrievalDataset) -> TrainingPairs:
    """Make one training pair of each judgement with a grade of 1 or more; the label is the document's id.

    Documents without title and text are left out: there is nothing to learn from them.

    Raises:
        InputError: no judgement gives a pair.

    Example:
        >>> corpus = {"d1": Document("d1", "Leonardo painted it."), "d2": Document("d2", "It is a fruit.")}
        >>> dataset = RetrievalDataset(corpus, {"q1": "who painted it?"}, {"q1": {"d1": 2, "d2": 0}}, "tiny")
        >>> pairs_from_dataset(dataset)
        TrainingPairs(queries=['who painted it?'], documents=['Leonardo painted it.'], labels=['d1'])
    """
    rows = [
        (dataset.queries[query], dataset.corpus[document].content, document)
        for query, grades in dataset.qrels.items()
        for document, grade in grades.items()
        if grade >= 1 and dataset.corpus[document].content.strip()
    ]
    if not rows:
        raise InputError(f"data set {dataset.name!r} has no judgement with a grade of 1 or more to train on")
    queries, documents, labels = map(list, zip(*rows, strict=True))
    return TrainingPairs(queries, documents, labels)


def _require_known(kind: str, named: Iterable[str], known: Collection[str]) -> None:
    unknown = [name for name in dict.fromkeys(named) if name not in known]
    if unknown:
        raise InputError(
            f"the qrels name {kind} {unknown[0]!r}, which the data set does not hold ({len(unknown)} such "
            "ids); add what is missing or remove these judgements"
        )


def _require_equal_lengths(**columns: list[str]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise InputError(f"the lists must have one length, found {lengths}")

"""Queries to be mined for, with what is known to answer them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearfar.data.documents import Document
from nearfar.errors import InputError

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Found(Protocol):
    """What a search returns: (Q, k) ids and scores, best first, and how many answers each query has."""

    @property
    def ids(self) -> npt.NDArray[np.object_]: ...  # noqa: D102
    @property
    def scores(self) -> Float32: ...  # noqa: D102
    @property
    def counts(self) -> Rows: ...  # noqa: D102


class NegativeIndex(Protocol):
    """What mining asks of an index; `nearfar.retrieval.VectorIndex` gives it."""

    @property
    def metric(self) -> str:
        """Cosine, inner_product or l2."""
        ...

    def __len__(self) -> int: ...

    def search(self, queries: Any, k: int, **parameters: Any) -> Found:
        """The k best rows of each query."""
        ...

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """The documents of `ids`."""
        ...

    def vectors(self, ids: Sequence[str]) -> Float32:
        """(n, D) the vectors of `ids`, of unit length for cosine."""
        ...

    def ids(self) -> list[str]:
        """All ids."""
        ...


@dataclass(frozen=True)
class MiningQueries:
    """Q queries and the positives from which their margins are measured.

    Args:
        vectors: (Q, D), as the index wants them.
        positive_vectors: (P, D) of distinct positives.
        positives: Q arrays, the rows of `positive_vectors` that answer each query.
        texts: Q texts, for a judge; documents that repeat the query's text are then left out as well.
        positive_texts: P texts, for a judge; documents with such a text are no negatives of its query.
        known_texts: Q collections of texts that answer the query too, as `text_key` gives them.
        known_ids: Q collections of ids that answer the query.

    Raises:
        InputError: lengths differ.
    """

    vectors: Float32
    positive_vectors: Float32
    positives: Sequence[Rows]
    texts: Sequence[str] | None = None
    positive_texts: Sequence[str] | None = None
    known_texts: Sequence[Collection[str]] | None = None
    known_ids: Sequence[Collection[str]] | None = None

    def __post_init__(self) -> None:
        lengths = {"vectors": len(self.vectors), "positives": len(self.positives)}
        for name in ("texts", "known_texts", "known_ids"):
            if (value := getattr(self, name)) is not None:
                lengths[name] = len(value)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise InputError(f"queries to mine for must have one entry each, found {found}")
        if self.positive_texts is not None and len(self.positive_texts) != len(self.positive_vectors):
            raise InputError(
                f"{len(self.positive_vectors)} positive vectors and {len(self.positive_texts)} positive texts: "
                "give one text for each"
            )

    @classmethod
    def from_ids(
        cls,
        index: NegativeIndex,
        vectors: Float32,
        positive_ids: Sequence[Sequence[str]],
        texts: Sequence[str] | None = None,
    ) -> MiningQueries:
        """Queries whose positives are documents of the index.

        Args:
            index: that is to be mined.
            vectors: (Q, D).
            positive_ids: ids of the documents that answer each query.
            texts: Q texts.
        """
        distinct = list(dict.fromkeys(name for names in positive_ids for name in names))
        rows = {name: row for row, name in enumerate(distinct)}
        documents = index.get(distinct)
        contents = [document.content for document in documents if document is not None]
        return cls(
            vectors=np.asarray(vectors, dtype=np.float32),
            positive_vectors=index.vectors(distinct),
            positives=[np.array([rows[name] for name in names], dtype=np.int64) for names in positive_ids],
            texts=texts,
            positive_texts=contents if len(contents) == len(distinct) else None,
            known_ids=[set(names) for names in positive_ids],
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def excluded_texts(self, row: int) -> set[str]:
        """Keys of the texts that are no negatives of a query: what answers it, and the query itself."""
        keys = set() if self.known_texts is None else set(self.known_texts[row])
        if self.positive_texts is not None:
            keys |= {text_key(self.positive_texts[positive]) for positive in self.positives[row]}
        if self.texts is not None:
            keys.add(text_key(self.texts[row]))
        return keys

    def excluded_ids(self, row: int) -> Collection[str]:
        """Ids that are no negatives of a query."""
        return () if self.known_ids is None else self.known_ids[row]


def text_key(text: str) -> str:
    """The text without what makes no difference: letter case and the amount of white space.

    Example:
        >>> text_key("Heart   attack ") == text_key("heart attack")
        True
    """
    return " ".join(text.casefold().split())


def similarities(metric: str, queries: Float32, documents: Float32) -> Float32:
    """Scores of an index with this metric, (Q, D) against (N, D) -> (Q, N); larger is better.

    Args:
        metric: "cosine", "inner_product", or "l2" (the negative squared distance).
        queries: (Q, D).
        documents: (N, D).
    """
    if metric == "cosine":
        queries, documents = _unit(queries), _unit(documents)
    if metric != "l2":
        product: Float32 = queries @ documents.T  # (Q, N)
        return product
    scores = np.empty((len(queries), len(documents)), dtype=np.float32)
    for row, query in enumerate(queries):  # by differences: expanding the square cancels in float32
        scores[row] = -np.square(documents - query).sum(axis=1)
    return scores


def _unit(vectors: Float32) -> Float32:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    unit: Float32 = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
    return unit

"""Documents that may become negatives: those of an index that are not known to answer the query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.miners.mining_queries import Float32, MiningQueries, NegativeIndex, Rows, similarities, text_key
from nearfar.miners.negative_filters import Mask

ObjectArray = npt.NDArray[np.object_]

_SPARE_RANKS = 16  # looked up at first beyond the ranks wanted, to make up for positives among the answers


@dataclass
class Candidates:
    """Documents for n queries, k each.

    Args:
        ids: (n, k) object array; None where there are fewer than k.
        scores: (n, k) of the index; -inf where there are fewer.
        allowed: (n, k) which of them may become negatives.
    """

    ids: ObjectArray
    scores: Float32
    allowed: Mask

    @classmethod
    def none(cls, rows: int, width: int) -> Candidates:
        """No document for any of `rows` queries."""
        shape = (rows, width)
        scores = np.full(shape, -np.inf, dtype=np.float32)
        return cls(np.full(shape, None, dtype=object), scores, np.zeros(shape, dtype=bool))


class CandidateSearch:
    """Looks up the candidates of some queries, and reads each document's text once.

    Args:
        index: the corpus.
        queries: with what is known to answer them.
        width: candidates of each query.
        duplicate_similarity: from which score with a positive on a document counts as its duplicate; None (never).
        parameters: of the index's search.
    """

    def __init__(
        self,
        index: NegativeIndex,
        queries: MiningQueries,
        width: int,
        duplicate_similarity: float | None,
        parameters: Mapping[str, Any],
    ) -> None:
        self._index = index
        self._queries = queries
        self._width = width
        self._duplicate_similarity = duplicate_similarity
        self._parameters = parameters
        self._known_texts = [queries.excluded_texts(row) for row in range(len(queries))]
        self._contents: dict[str, str | None] = {}  # id -> text
        self._keys: dict[str, str | None] = {}  # id -> key of the text

    def search(self, removed: Counter[str]) -> Candidates:
        """The best `width` documents of each query that are not known to answer it; counts the others in `removed`."""
        size = len(self._index)
        result = Candidates.none(len(self._queries), self._width)
        rows, depth = np.arange(len(self._queries)), min(self._width + _SPARE_RANKS, size)
        while rows.size:
            found = self._index.search(self._queries.vectors[rows], depth, **self._parameters)
            kept, reasons = self._unknown(found.ids, found.counts, rows)  # (rows, depth)
            # A query whose positives fill the answers is looked up deeper; most are done at once.
            done = (kept.sum(axis=1) >= self._width) | (found.counts < depth) | (depth >= size)
            for local in np.flatnonzero(done):
                columns = np.flatnonzero(kept[local])[: self._width]
                result.ids[rows[local], : columns.size] = found.ids[local, columns]
                result.scores[rows[local], : columns.size] = found.scores[local, columns]
                removed.update(reasons[local])
            rows, depth = rows[~done], min(2 * depth, size)
        result.allowed = result.scores > -np.inf
        return result

    def draw(self, rows: Rows, found: Candidates, count: int, *, seed: int, numbers: Rows) -> Candidates:
        """Random documents for the queries `rows` that neither answer them nor are among their candidates.

        Args:
            rows: (n,) numbers of queries.
            found: the candidates of all queries.
            count: documents drawn for each query; those that do not qualify leave fewer.
            seed: of the draws.
            numbers: (n,) a number of each of them, which with the seed decides its draws.
        """
        names = self._index.ids()
        drawn = Candidates.none(len(rows), count)
        counts = np.zeros(len(rows), dtype=np.int64)
        for local in range(len(rows)):
            draws = np.random.default_rng([seed, int(numbers[local]), 1])  # another stream than that of `sample`
            new = dict.fromkeys(names[position] for position in draws.integers(len(names), size=count))
            drawn.ids[local, : len(new)], counts[local] = list(new), len(new)
        drawn.allowed, _ = self._unknown(drawn.ids, counts, rows, found)
        for local, row in enumerate(rows):
            if (columns := drawn.allowed[local]).any():
                vectors = self._index.vectors(drawn.ids[local, columns].tolist())
                own = self._queries.vectors[row : row + 1]
                drawn.scores[local, columns] = similarities(self._index.metric, own, vectors)[0]
        return drawn

    def texts(self, ids: ObjectArray) -> ObjectArray:
        """The texts of the documents, in the shape of `ids`; None where there is no id or no text."""
        self._read(name for name in ids.flat if name is not None)
        texts = np.full(ids.shape, None, dtype=object)
        for place, name in np.ndenumerate(ids):
            texts[place] = None if name is None else self._contents[name]
        return texts

    def _read(self, names: Iterable[str]) -> None:
        new = [name for name in dict.fromkeys(names) if name not in self._contents]
        for name, document in zip(new, self._index.get(new), strict=True):
            content = None if document is None else document.content
            self._contents[name] = content
            self._keys[name] = None if content is None else text_key(content)

    def _unknown(
        self, ids: ObjectArray, counts: Rows, rows: Rows, but: Candidates | None = None
    ) -> tuple[Mask, list[Counter[str]]]:
        """Which of (n, k) documents may be negatives of the queries `rows`, and why the others may not.

        Args:
            ids: (n, k).
            counts: (n,) how many each query has.
            rows: (n,) numbers of the queries.
            but: candidates of all queries, none of which is wanted again.
        """
        kept = np.zeros(ids.shape, dtype=bool)
        reasons: list[Counter[str]] = []
        if any(self._known_texts):
            self._read({name for row, count in zip(ids, counts, strict=True) for name in row[:count]})
        for local, row in enumerate(rows):
            why: Counter[str] = Counter()
            known_ids, known_texts = self._queries.excluded_ids(row), self._known_texts[row]
            seen = set() if but is None else {self._keys.get(name) for name in but.ids[row] if name is not None}
            gone = set() if but is None else set(but.ids[row])
            for column, name in enumerate(ids[local, : counts[local]]):
                key = self._keys.get(name)
                if name in known_ids or (key is not None and key in known_texts):
                    why["positive"] += 1
                elif name in gone or (key is not None and key in seen):
                    why["repeated"] += 1
                else:
                    kept[local, column] = True
                    seen.add(key)
            reasons.append(why)
        if self._duplicate_similarity is not None:
            self._drop_duplicates(ids, rows, kept, reasons, self._duplicate_similarity)
        return kept, reasons

    def _drop_duplicates(
        self, ids: ObjectArray, rows: Rows, kept: Mask, reasons: list[Counter[str]], least: float
    ) -> None:
        for local, row in enumerate(rows):
            columns, positives = np.flatnonzero(kept[local]), self._queries.positives[row]
            if not columns.size or not len(positives):
                continue
            vectors = self._index.vectors(ids[local, columns].tolist())  # (c, D)
            near = similarities(self._index.metric, vectors, self._queries.positive_vectors[positives])  # (c, p)
            duplicate = near.max(axis=1) >= least
            kept[local, columns[duplicate]] = False
            reasons[local]["duplicate"] += int(duplicate.sum())

"""What training data says about which documents answer which queries."""

from __future__ import annotations

from collections.abc import Iterator

from nearfar.data.documents import RetrievalDataset, TrainingPairs, pairs_from_dataset
from nearfar.errors import InputError
from nearfar.miners.mining_queries import text_key

_ROWS = 10_000  # of `contents`, at a time


class KnownAnswers:
    """The distinct queries of pairs or of a data set, in order, with all that answers each.

    Args:
        data: pairs, or a data set, whose judgements of 1 or more are pairs with the document's id as label.

    Raises:
        InputError: there is no pair.

    Example:
        >>> pairs = TrainingPairs(["MI", "heart attack"], ["Infarction", "Heart attack (MI)"], ["22", "22"])
        >>> answers = KnownAnswers(pairs)
        >>> answers.positives("MI"), sorted(answers.texts("MI"))
        ({'Infarction': 0}, ['heart attack (mi)', 'infarction'])
    """

    def __init__(self, data: TrainingPairs | RetrievalDataset) -> None:
        self._labels_are_ids = isinstance(data, RetrievalDataset)
        self._pairs = pairs_from_dataset(data) if isinstance(data, RetrievalDataset) else data
        if not len(self._pairs):
            raise InputError("there are no pairs to mine for; give at least one query with its document")
        numbers: dict[str, int] = {}  # label -> class number
        self._positives: dict[str, dict[str, int]] = {}  # query -> document -> class number
        self._labels: dict[str, set[str]] = {}  # query -> labels
        self._answers: dict[str, dict[str, None]] = {}  # label -> documents
        for query, document, label in zip(self._pairs.queries, self._pairs.documents, self._pairs.labels, strict=True):
            number = numbers.setdefault(label, len(numbers))
            self._positives.setdefault(query, {}).setdefault(document, number)
            self._labels.setdefault(query, set()).add(label)
            self._answers.setdefault(label, {})[document] = None
        self.queries = list(self._positives)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def pair_count(self) -> int:
        """Distinct pairs of a query and a document."""
        return sum(map(len, self._positives.values()))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The distinct pairs."""
        return ((query, document) for query, documents in self._positives.items() for document in documents)

    def positives(self, query: str) -> dict[str, int]:
        """The documents of a query's own rows, with the class number of each."""
        return self._positives[query]

    def texts(self, query: str) -> set[str]:
        """Keys of all texts that answer a query: the documents of every row that shares a label with one of its."""
        return {text_key(document) for label in self._labels[query] for document in self._answers[label]}

    def ids(self, query: str) -> set[str]:
        """Ids of the documents that answer a query; none where the data names none."""
        return self._labels[query] if self._labels_are_ids else set()

    def contents(self) -> Iterator[list[list[str]]]:
        """All there is to it, in portions: what a key of the data is made of."""
        pairs = self._pairs
        yield [["labels are ids" if self._labels_are_ids else "labels"]]
        for first in range(0, len(pairs), _ROWS):
            rows = slice(first, first + _ROWS)
            yield [pairs.queries[rows], pairs.documents[rows], pairs.labels[rows]]

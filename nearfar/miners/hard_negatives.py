"""Hard negatives from an index: https://arxiv.org/abs/2407.15831 (NV-Retriever, de Souza P. Moreira et al., 2024).

The documents that a model confuses with a query's answer teach it most (https://arxiv.org/abs/2007.00808, ANCE),
unless they answer the query as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from nearfar.errors import InputError, UnknownNameError
from nearfar.miners.candidates import Candidates, CandidateSearch, ObjectArray
from nearfar.miners.mining_queries import Float32, MiningQueries, NegativeIndex, Rows, similarities
from nearfar.miners.negative_filters import Floats, Mask, NegativeFilters
from nearfar.miners.negative_sampling import Columns, Sampling, check_sampling, sample

Judge = Callable[[list[tuple[str, str]]], Any]
Short = Literal["drop", "keep", "fill"]

_FILL_DRAWS = 8  # documents drawn for each negative wanted; most random ones qualify


@dataclass(frozen=True)
class MinedNegatives:
    """The negatives of Q queries, hardest first.

    Args:
        ids: (Q, n) object array; None where a query has fewer than n.
        texts: (Q, n) object array of the documents' texts; None too where the index holds no documents.
        scores: (Q, n) scores of the index; -inf where a query has fewer.
        grades: (Q, n) relevance in [0, 1], or None; NaN where a query has fewer.
        counts: (Q,) negatives of each query; 0 where it was dropped.
        positive_scores: Q arrays, the score of each positive: the judge's where there is a judge.
        short: (Q,) whether fewer than n candidates were left, before anything was filled up.
        removed: how many documents each rule took away. A document counts for the first rule that takes it.
    """

    ids: ObjectArray
    texts: ObjectArray
    scores: Float32
    grades: Float32 | None
    counts: Rows
    positive_scores: list[Floats]
    short: Mask
    removed: dict[str, int]


class HardNegativeMiner:
    """Finds each query's hardest negatives in an index, and leaves out what may answer the query.

    For each query: the best ``range_max`` documents of the index that are not known to answer it, without the first
    ``range_min``; those which the filters let through; and of these ``num_negatives``.

    Known to answer a query are its positives, by id and by text (letter case and white space aside), documents that
    repeat the query itself, and with ``duplicate_similarity`` documents that near a positive. They take no rank.

    Args:
        index: the corpus, embedded by the model that is to be trained. The harder for that model, the better.
        num_negatives: for each query; 4.
        filters: of false negatives; by default a negative scores at most 95 % of the query's hardest positive.
        range_min: leave out this many of the best; 0.
        range_max: the last rank looked at; 50.
        duplicate_similarity: a document whose score with a positive is at least this (in the index's metric) is a
            duplicate of that positive; None (off).
        judge: called with a list of (query, document) texts, it gives their scores, as the ``predict`` of a
            cross-encoder does. All filters then measure its scores instead of the index's; which negatives are hard
            is still said by the index. None.
        graded: give each negative a grade: the judge's score, which must lie in [0, 1]; without a judge the share of
            positives, over many queries, that score no higher (a calibration of ours: 0.1 means that one positive in
            ten looks no better).
        sampling: "top" (the hardest), "random" (any, with the same chance), "softmax" (by the index's score).
        temperature: of "softmax"; 0.05, the usual one for cosines.
        short: a query with fewer negatives left is dropped ("drop"), kept with fewer ("keep"), or filled up with
            random documents that pass the same filters but ``min_score`` ("fill"), and dropped where that fails.
        seed: of all draws.
        search_parameters: for the index's search, for example ``{"nprobe": 64}``.

    Raises:
        InputError: numbers out of range.
        UnknownNameError: an unknown ``sampling`` or ``short``.

    Example:
        >>> import tempfile, numpy as np
        >>> from nearfar.retrieval import VectorIndex
        >>> corpus = np.array([[1, 0], [0.9, 0.4], [0.6, 0.8], [0, 1]])
        >>> with VectorIndex.create(tempfile.mkdtemp(), dimension=2) as index:
        ...     index.add(corpus, ["a", "b", "c", "d"])
        ...     miner = HardNegativeMiner(index, num_negatives=2)
        ...     queries = MiningQueries.from_ids(index, [[1, 0.1]], [["a"]])
        ...     miner.mine(queries).ids.tolist()  # "b" scores 0.950, and 95 % of the positive's 0.995 is 0.945
        [['c', 'd']]

    Source: mining with the model's own index is ANCE's, filters relative to the positive are NV-Retriever's. The
    judge's role, the calibration of grades and the defaults but for the margin are ours.
    """

    def __init__(
        self,
        index: NegativeIndex,
        num_negatives: int = 4,
        *,
        filters: NegativeFilters | None = None,
        range_min: int = 0,
        range_max: int = 50,
        duplicate_similarity: float | None = None,
        judge: Judge | None = None,
        graded: bool = False,
        sampling: Sampling = "top",
        temperature: float = 0.05,
        short: Short = "drop",
        seed: int = 0,
        search_parameters: dict[str, Any] | None = None,
    ) -> None:
        _check_ranks(num_negatives, range_min, range_max)
        check_sampling(sampling, temperature)
        if short not in get_args(Short):
            raise UnknownNameError("way with queries that run short", short, get_args(Short))
        if seed < 0:
            raise InputError(f"seed={seed!r} must be at least 0")
        if duplicate_similarity is not None and not np.isfinite(duplicate_similarity):
            raise InputError(f"duplicate_similarity={duplicate_similarity!r} must be a finite number")
        self.index = index
        self.num_negatives = num_negatives
        self.filters = filters or NegativeFilters()
        self.range_min = range_min
        self.range_max = range_max
        self.duplicate_similarity = duplicate_similarity
        self.judge = judge
        self.graded = graded
        self.sampling: Sampling = sampling
        self.temperature = temperature
        self.short: Short = short
        self.seed = seed
        self.search_parameters = dict(search_parameters or {})

    def settings(self) -> dict[str, Any]:
        """Everything but the index and the judge, ready for JSON."""
        left_out = ("index", "judge", "filters")
        own = {name: value for name, value in vars(self).items() if name not in left_out and not name.startswith("_")}
        return {**own, "filters": asdict(self.filters)}

    @property
    def needs_population(self) -> bool:
        """Scores of the positives of many queries are asked for."""
        return self.filters.positive_percentile is not None or (self.graded and self.judge is None)

    def mine(
        self, queries: MiningQueries, *, numbers: Rows | None = None, population: Floats | None = None
    ) -> MinedNegatives:
        """Find the negatives of Q queries.

        Args:
            queries: with their positives.
            numbers: (Q,) a number of each query, when queries come in portions: with the seed it decides the query's
                draws. Default 0, 1, 2 ...
            population: scores of the positives of many queries, for ``positive_percentile`` and for grades without a
                judge; default: those of `queries`.

        Raises:
            InputError: the index is empty; a query without a positive, where a margin or the population needs one; a
                judge without texts; or a judge whose scores are not numbers, or no grades where grades are wanted.
        """
        if not len(self.index):
            raise InputError("the index is empty; add documents to it first")
        self._check(queries)
        if numbers is None:
            numbers = np.arange(len(queries))
        return _Mining(self, queries, numbers, population).run()

    def score_positives(self, queries: MiningQueries) -> list[Floats]:
        """Q arrays, the score of each query's positives: the judge's, or else the index's."""
        self._check(queries)
        if self.judge is None:
            scores = [
                similarities(self.index.metric, queries.vectors[row : row + 1], queries.positive_vectors[positives])[0]
                for row, positives in enumerate(queries.positives)
            ]
            return list(scores)
        assert queries.texts is not None
        assert queries.positive_texts is not None
        texts = queries.positive_texts
        pairs = [
            (query, texts[positive])
            for query, positives in zip(queries.texts, queries.positives, strict=True)
            for positive in positives
        ]
        ends = np.cumsum([len(positives) for positives in queries.positives])[:-1]
        return np.split(self.judged(pairs), ends) if len(queries) else []

    def judged(self, pairs: list[tuple[str, str]]) -> Floats:
        """The judge's scores of (query, document) texts: (n,) float64."""
        assert self.judge is not None
        if not pairs:
            return np.empty(0)
        scores = np.asarray(self.judge(pairs), dtype=np.float64)
        if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
            raise InputError(
                f"the judge gave an array of shape {scores.shape} for {len(pairs)} pairs; "
                "it must give one finite number for each"
            )
        if self.graded and (scores.min() < 0 or scores.max() > 1):
            raise InputError(
                f"the judge's scores reach from {scores.min():.4g} to {scores.max():.4g}; grades must lie in [0, 1], "
                "so let the judge end in a sigmoid"
            )
        return scores

    def _check(self, queries: MiningQueries) -> None:
        if self.judge is not None and (queries.texts is None or queries.positive_texts is None):
            raise InputError("the judge reads texts; give the queries' texts and the positives'")
        lonely = next((row for row, positives in enumerate(queries.positives) if not len(positives)), None)
        if lonely is not None and (self.filters.need_positives or self.needs_population):
            raise InputError(
                f"query {lonely} has no positive, which margins, positive_percentile and grades are measured by; "
                "leave it out, or mine without them"
            )


class _Mining:
    """One call of `HardNegativeMiner.mine`."""

    def __init__(
        self, miner: HardNegativeMiner, queries: MiningQueries, numbers: Rows, population: Floats | None
    ) -> None:
        self.miner = miner
        self.queries = queries
        self.numbers = numbers
        self.candidates = CandidateSearch(
            miner.index, queries, miner.range_max, miner.duplicate_similarity, miner.search_parameters
        )
        self.removed: Counter[str] = Counter()
        self.positive_scores = miner.score_positives(queries)
        self.reference = miner.filters.reference(self.positive_scores)
        if population is None and miner.needs_population and len(queries):
            population = np.concatenate(self.positive_scores)
        self.population = None if population is None else np.sort(population)

    def run(self) -> MinedNegatives:
        miner, n = self.miner, self.miner.num_negatives
        found = self.candidates.search(self.removed)
        found.allowed[:, : miner.range_min] = False
        measured = self._filter(found, np.arange(len(self.queries)), miner.filters)
        columns = sample(
            found.scores,
            found.allowed,
            n,
            sampling=miner.sampling,
            temperature=miner.temperature,
            seed=miner.seed,
            numbers=self.numbers,
        )
        ids, scores, grades = self._take(found, measured, columns)
        counts = (columns >= 0).sum(axis=1)
        short = counts < n
        if miner.short == "fill" and short.any():
            counts[short] += self._fill(np.flatnonzero(short), found, counts[short], ids, scores, grades)
        if miner.short != "keep":
            dropped = counts < n
            ids[dropped], scores[dropped], grades[dropped], counts[dropped] = None, -np.inf, np.nan, 0
        return MinedNegatives(
            ids=ids,
            texts=self.candidates.texts(ids),
            scores=scores,
            grades=grades if miner.graded else None,
            counts=counts,
            positive_scores=self.positive_scores,
            short=short,
            removed={name: count for name, count in self.removed.items() if count},
        )

    def _filter(self, found: Candidates, rows: Rows, filters: NegativeFilters) -> Floats:
        """Take from `found.allowed` what the filters refuse; the (n, k) scores that they measured."""
        measured: Floats = found.scores if self.miner.judge is None else self._judge(found, rows)
        for name, refused in filters.rejections(measured, self.reference[rows], self.population):
            refused = refused & found.allowed
            self.removed[name] += int(refused.sum())
            found.allowed &= ~refused
        return measured

    def _judge(self, found: Candidates, rows: Rows) -> Floats:
        """(n, k) the judge's scores of the documents that are still allowed, NaN elsewhere."""
        texts = self.queries.texts
        assert texts is not None
        local, columns = np.nonzero(found.allowed)
        documents = self.candidates.texts(found.ids[local, columns])
        if any(document is None for document in documents):
            raise InputError("the judge reads texts, and the index holds none; index documents, not vectors alone")
        measured = np.full(found.scores.shape, np.nan)
        pairs = [(texts[rows[i]], document) for i, document in zip(local, documents, strict=True)]
        measured[local, columns] = self.miner.judged(pairs)
        return measured

    def _take(self, found: Candidates, measured: Floats, columns: Columns) -> tuple[ObjectArray, Float32, Float32]:
        """(n, num_negatives) ids, scores and grades in `columns`, with blanks where they are -1."""
        there, at = columns >= 0, np.maximum(columns, 0)
        ids = np.take_along_axis(found.ids, at, axis=1)
        scores = np.take_along_axis(found.scores, at, axis=1)
        ids[~there], scores[~there] = None, -np.inf
        grades = np.full(ids.shape, np.nan, dtype=np.float32)
        if self.miner.graded:
            taken = np.take_along_axis(measured, at, axis=1)[there]
            grades[there] = taken if self.miner.judge is not None else self._calibrated(taken)
        return ids, scores, grades

    def _calibrated(self, scores: Floats) -> Floats:
        """The share of positives that score no higher."""
        assert self.population is not None
        return np.searchsorted(self.population, scores, side="right") / max(len(self.population), 1)

    def _fill(
        self, rows: Rows, found: Candidates, counts: Rows, ids: ObjectArray, scores: Float32, grades: Float32
    ) -> Rows:
        """Add random documents that pass the filters to the queries `rows`, in place; how many each got."""
        n = self.miner.num_negatives
        numbers, seed = self.numbers[rows], self.miner.seed
        drawn = self.candidates.draw(rows, found, _FILL_DRAWS * n, seed=seed, numbers=numbers)
        measured = self._filter(drawn, rows, replace(self.miner.filters, min_score=None))
        columns = sample(drawn.scores, drawn.allowed, n)
        more = self._take(drawn, measured, columns)
        for local, (row, have) in enumerate(zip(rows, counts, strict=True)):
            for mine, new in zip((ids, scores, grades), more, strict=True):
                mine[row, have:] = new[local, : n - have]
        added: Rows = np.minimum((columns >= 0).sum(axis=1), n - counts)
        return added


def _check_ranks(num_negatives: int, range_min: int, range_max: int) -> None:
    for name, value, least in (("num_negatives", num_negatives, 1), ("range_min", range_min, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}={value!r} must be a whole number of at least {least}")
    if range_max < range_min + num_negatives:
        raise InputError(
            f"range_max={range_max!r} leaves {range_max - range_min} ranks after range_min={range_min}, too few for "
            f"num_negatives={num_negatives}; give at least {range_min + num_negatives}"
        )

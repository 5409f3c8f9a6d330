"""Hard negatives for pairs of texts: from an index to a file that trains the next model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.documents import RetrievalDataset, TrainingPairs
from nearfar.data.mined import MinedFormat, MinedQuery, check_mined_format, mined_schema, mined_table
from nearfar.data.parts import PartFolder, check_output, finished_summary
from nearfar.errors import InputError
from nearfar.miners import HardNegativeMiner, MinedNegatives, MiningQueries
from nearfar.miners.known_answers import KnownAnswers
from nearfar.miners.mining_queries import Float32, Rows
from nearfar.miners.negative_filters import Mask
from nearfar.retrieval.mining_key import mining_key
from nearfar.retrieval.retriever import Retriever

_POPULATION = 10_000  # pairs whose scores stand for those of all positives
_COUNTS = ("rows", "negatives", "short", "dropped", "unusable")


@dataclass(frozen=True)
class MiningReport:
    """What was mined.

    Attributes:
        path: the Parquet file.
        reused: the file was there, mined with the very same model, index, data and settings; nothing was done.
        queries: distinct queries.
        pairs: distinct pairs of a query and its positive.
        rows: rows of the file.
        negatives: of all queries together.
        short: queries for which fewer than ``num_negatives`` candidates were left.
        dropped: queries without rows, for being short.
        unusable: queries without rows, for having a zero vector (no known word), which has no cosine.
        removed: how many documents each rule took away.
        mean_score: of the negatives, in the index.
    """

    path: Path
    reused: bool
    queries: int
    pairs: int
    rows: int
    negatives: int
    short: int
    dropped: int
    unusable: int
    removed: dict[str, int]
    mean_score: float


def mine_negatives(
    retriever: Retriever,
    data: TrainingPairs | RetrievalDataset,
    output: str | Path,
    *,
    num_negatives: int = 4,
    mined_format: MinedFormat = "n-tuple",
    graded: bool = False,
    chunk_queries: int = 1024,
    batch_size: int = 32,
    show_progress: bool = False,
    **options: Any,
) -> MiningReport:
    """Mine hard negatives for every query and write rows to train on; `nearfar.data.load_mined` reads them.

    A query is a distinct text. Its positives are the documents of its rows; what rows with the same label answer is no
    negative either, by text, and for a ``RetrievalDataset`` by id too.

    Queries are handled in chunks, each written as a part beside `output`. A run that was interrupted goes on after its
    parts; the file itself is written in one step. Parts and files are taken up only under the key they were mined
    with, of the model's weights, tokenizer and prompts, the index's content, the data, the judge's weights and all
    settings: what another model mined is never returned.

    Args:
        retriever: the model and the index that it filled.
        data: pairs, or a data set, whose judgements of 1 or more are pairs.
        output: a ``.parquet`` file; one that an earlier call wrote is replaced when anything has changed.
        num_negatives: for each query; 4.
        mined_format: "n-tuple" (``query, document, negative_1 ...``), "triplet", or "pair" (whose ``label`` is 1 or 0,
            or the grade). Tuples suit losses that compare within the batch, where the rows of one query should not
            meet: ``fine_tune(batch_sampler="no_duplicates")``.
        graded: see `HardNegativeMiner`; ``label`` then holds the grades of the row's documents, as "bixse" wants them.
        chunk_queries: encoded, searched and written at a time; 1024. More takes more memory, and loses more.
        batch_size: texts that the model encodes at a time.
        show_progress: show a progress bar on standard error.
        **options: as for `HardNegativeMiner`: ``filters``, ``judge``, ``sampling``, ``short`` ...

    Raises:
        InputError: no pairs, an index with too few documents or without texts, n-tuples with ``short="keep"``, nothing
            left to write, or as for `HardNegativeMiner`.
        DataFileError: the output cannot be written, or is a file of something else.

    Example:
        >>> import tempfile
        >>> from nearfar.data import Document, TrainingPairs, demo_model, load_mined
        >>> folder = tempfile.mkdtemp()
        >>> names = ["tremor", "fever", "blue eyes", "tall stature"]
        >>> pairs = TrainingPairs(["shaking tremor"], ["tremor"], ["tremor"])
        >>> with Retriever.create(f"{folder}/index", demo_model()) as retriever:
        ...     _ = retriever.index_documents([Document(name, name) for name in names])
        ...     mine_negatives(retriever, pairs, f"{folder}/mined.parquet", num_negatives=1).rows
        1
        >>> sorted(load_mined(f"{folder}/mined.parquet")[0])
        ['document', 'label', 'negative_1', 'query']
    """
    output = Path(output)
    check_mined_format(mined_format)
    check_output(output)
    miner = HardNegativeMiner(retriever.index, num_negatives, graded=graded, **options)
    _check(miner, mined_format, chunk_queries, batch_size)
    answers = KnownAnswers(data)
    key = mining_key(retriever, miner, answers, {"format": mined_format})
    if (found := finished_summary(output, key)) is not None:
        return MiningReport(path=output, reused=True, **found)
    job = _Job(retriever, miner, answers, mined_format, batch_size)
    with PartFolder(output, key, layout=str(chunk_queries)) as parts, _progress(len(answers), show_progress) as advance:
        job.run(parts, chunk_queries, advance)
        summary = _summarise(parts.finished().values(), answers)
        if not summary["rows"]:
            parts.discard()
            taken = ", ".join(f"{name} {count}" for name, count in summary["removed"].items()) or "nothing"
            raise InputError(
                f"no query has negatives left (taken away: {taken}); loosen the filters, raise range_max, or let "
                "queries that run short be filled up"
            )
        parts.join(mined_schema(mined_format, num_negatives, graded), summary)
    return MiningReport(path=output, reused=False, **summary)


def _check(miner: HardNegativeMiner, mined_format: MinedFormat, chunk_queries: int, batch_size: int) -> None:
    if mined_format == "n-tuple" and miner.short == "keep":
        raise InputError("n-tuples have one length, so short='keep' is for triplets and pairs; use 'drop' or 'fill'")
    for name, value in (("chunk_queries", chunk_queries), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}={value!r} must be at least 1")
    size = len(miner.index)
    if size < miner.num_negatives:
        raise InputError(
            f"the index holds {size} documents, too few for num_negatives={miner.num_negatives}; "
            "index a larger corpus or ask for fewer"
        )


class _Job:
    """Encodes, mines and writes the chunks that no part holds yet."""

    def __init__(
        self,
        retriever: Retriever,
        miner: HardNegativeMiner,
        answers: KnownAnswers,
        mined_format: MinedFormat,
        batch_size: int,
    ) -> None:
        self.model = retriever.model
        self.miner = miner
        self.answers = answers
        self.mined_format: MinedFormat = mined_format
        self.batch_size = batch_size

    def run(self, parts: PartFolder, chunk_queries: int, advance: Callable[[int], None]) -> None:
        done = parts.finished()
        starts = range(0, len(self.answers), chunk_queries)
        population = None
        if self.miner.needs_population and len(done) < len(starts):
            population = self._population()
        for number, first in enumerate(starts):
            texts = self.answers.queries[first : first + chunk_queries]
            if number not in done:
                self._write(parts, number, first, texts, population)
            advance(len(texts))

    def _write(self, parts: PartFolder, number: int, first: int, texts: list[str], population: Float32 | None) -> None:
        vectors, usable = self._encode_queries(texts)
        kept = [text for text, good in zip(texts, usable, strict=True) if good]
        queries = self._with_positives(kept, vectors[usable])
        mined = self.miner.mine(queries, numbers=first + np.flatnonzero(usable), population=population)
        table = mined_table(
            self._rows(kept, mined), self.mined_format, self.miner.num_negatives, graded=self.miner.graded
        )
        summary = {
            "rows": table.num_rows,
            "negatives": int(mined.counts.sum()),
            "short": int(mined.short.sum()),
            "dropped": int((mined.counts == 0).sum()),
            "unusable": len(texts) - len(kept),
            "removed": mined.removed,
            "score_sum": float(mined.scores[mined.scores > -np.inf].sum(dtype=np.float64)),
        }
        parts.write(number, table, summary)

    def _encode_queries(self, texts: list[str]) -> tuple[Float32, Mask]:
        """(Q, D) vectors, and which of them can be searched with."""
        vectors = _as_float32(self.model.encode_query(texts, batch_size=self.batch_size, show_progress_bar=False))
        usable: Mask = (vectors != 0).any(axis=1) | (self.miner.index.metric != "cosine")
        return vectors, usable

    def _with_positives(
        self, texts: list[str], vectors: Float32, pairs: list[tuple[str, str]] | None = None
    ) -> MiningQueries:
        """Queries with all their positives, or those of `pairs`, one for each query."""
        own = [list(self.answers.positives(text)) for text in texts] if pairs is None else [[d] for _, d in pairs]
        documents = {document: row for row, document in enumerate(dict.fromkeys(d for ds in own for d in ds))}
        found = self.model.encode_document(list(documents), batch_size=self.batch_size, show_progress_bar=False)
        rows: list[Rows] = [np.array([documents[document] for document in ds], dtype=np.int64) for ds in own]
        return MiningQueries(
            vectors=vectors,
            positive_vectors=_as_float32(found).reshape(len(documents), -1),
            positives=rows,
            texts=texts,
            positive_texts=list(documents),
            known_texts=[self.answers.texts(text) for text in texts],
            known_ids=[self.answers.ids(text) for text in texts],
        )

    def _population(self) -> Float32:
        """Scores of a sample of all pairs."""
        pairs = list(self.answers.pairs())
        draws = np.random.default_rng([self.miner.seed, 2**32]).permutation(len(pairs))[:_POPULATION]
        sampled = [pairs[position] for position in np.sort(draws)]
        texts = [query for query, _ in sampled]
        vectors, usable = self._encode_queries(texts)
        sampled = [pair for pair, good in zip(sampled, usable, strict=True) if good]
        queries = self._with_positives([query for query, _ in sampled], vectors[usable], sampled)
        scores = self.miner.score_positives(queries)
        return np.concatenate([np.asarray(one, dtype=np.float32) for one in scores] or [np.empty(0, np.float32)])

    def _rows(self, texts: list[str], mined: MinedNegatives) -> Iterator[MinedQuery]:
        for row, text in enumerate(texts):
            if not (count := int(mined.counts[row])):
                continue
            negatives = mined.texts[row, :count].tolist()
            if None in negatives:
                name = mined.ids[row, negatives.index(None)]
                raise InputError(f"document {name!r} has no text in the index; index documents, not vectors alone")
            grades = None if mined.grades is None else mined.grades[row, :count].tolist()
            positives = self.answers.positives(text)
            yield MinedQuery(text, list(positives), list(positives.values()), negatives, grades)


def _as_float32(vectors: Any) -> Float32:
    matrix: Float32 = np.asarray(vectors, dtype=np.float32)
    return matrix


def _summarise(parts: Iterable[dict[str, Any]], answers: KnownAnswers) -> dict[str, Any]:
    """The report of all parts together."""
    totals, removed, score_sum = Counter(dict.fromkeys(_COUNTS, 0)), Counter[str](), 0.0
    for part in parts:
        totals.update({name: part[name] for name in _COUNTS})
        removed.update(part["removed"])
        score_sum += part["score_sum"]
    return {
        "queries": len(answers),
        "pairs": answers.pair_count,
        **totals,
        "removed": dict(removed),
        "mean_score": score_sum / max(totals["negatives"], 1),
    }


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; gives the function that advances it."""
    if not show:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Mining queries", total=total)
        yield lambda count: progress.advance(task, count)

"""Evaluate an encoder with its index on a data set, ready for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearfar.data import LabelledTexts, RetrievalDataset
from nearfar.errors import InputError
from nearfar.eval import ThresholdCard, evaluate_run, opis, recall_curve, score_histogram
from nearfar.eval.report import FrontierPoint, ModelSection, worst_queries
from nearfar.eval.thresholds.curves import pair_curves
from nearfar.retrieval.frontier import measure_frontier
from nearfar.retrieval.retriever import Retriever

METRICS = ("R@1", "R@10", "R@100", "RR@10", "nDCG@10", "AP@100")
_CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
WORST_QUERIES = 20
ANSWERS = 5_000  # queries whose answers a report lets its readers search; beyond, the worst of them
FRONTIER_QUERIES = 500
OPIS_CLASS_SIZE = 5  # with fewer texts a class, OPIS measures mostly noise


@dataclass(frozen=True)
class ModelEvaluation:
    """One model on one data set.

    Attributes:
        section: everything a report shows of the model.
        run: query id -> document id -> score.
    """

    section: ModelSection
    run: dict[str, dict[str, float]]

    def headline(self) -> dict[str, float]:
        """The figures of a before/after table: recall, reciprocal rank and, when measured, OPIS."""
        figures = {name: self.section.ranking.mean[name] for name in ("R@1", "R@10", "RR@10")}
        if self.section.opis is not None:
            figures["OPIS"] = self.section.opis.opis
            figures["OPIS corrected"] = self.section.opis.corrected
        return figures


def evaluate_retriever(
    retriever: Retriever,
    dataset: RetrievalDataset,
    texts: LabelledTexts | None = None,
    *,
    name: str = "model",
    metrics: Sequence[str] = METRICS,
    depth: int = 100,
    seed: int = 0,
    threshold_card: ThresholdCard | None = None,
    ties: str = "trec",
    relevance_level: int = 1,
    frontier: bool = False,
) -> ModelEvaluation:
    """Search every query of a data set and measure the answers; measure threshold consistency on labelled texts.

    Args:
        retriever: a model with an index of the data set's corpus.
        dataset: queries and judgements; its corpus supplies the texts a report shows.
        texts: labelled texts for OPIS, the score histograms and the error rates of pairs; for OPIS, classes with
            fewer than five texts serve as negatives only. None leaves all three out.
        name: how a report calls the model.
        metrics: names as ``evaluate_run`` takes them; the first orders the worst queries.
        depth: documents retrieved per query.
        seed: of the noise floor and of sampled pairs.
        threshold_card: a calibrated threshold for pairs of this model's cosines, for the report to draw.
        ties: how documents of equal score are ordered, see ``evaluate_run``.
        relevance_level: the smallest grade that counts as relevant.
        frontier: also measure recall and latency of the index, on a sample of 500 queries; see ``measure_frontier``.

    Raises:
        InputError: the index is empty, no class has five texts, or the card is one for queries.

    Example:
        >>> import tempfile
        >>> from nearfar.data import Document, RetrievalDataset, demo_model
        >>> from nearfar.retrieval import Retriever
        >>> corpus = {"d1": Document("d1", "tremor of the hands"), "d2": Document("d2", "blue eyes")}
        >>> dataset = RetrievalDataset(corpus, {"q": "shaking hands"}, {"q": {"d1": 1}}, "tiny")
        >>> with Retriever.create(tempfile.mkdtemp(), demo_model()) as retriever:
        ...     added = retriever.index_documents(corpus.values())
        ...     evaluate_retriever(retriever, dataset).headline()
        {'R@1': 1.0, 'R@10': 1.0, 'RR@10': 1.0}
    """
    if len(retriever.index) == 0:
        raise InputError(f"index {str(retriever.index.path)!r} is empty; index the corpus before evaluating")
    run = retriever.run(dataset.queries, depth)
    rules: dict[str, Any] = {"ties": ties, "relevance_level": relevance_level}
    ranking = evaluate_run(run, dataset.qrels, list(dict.fromkeys([*metrics, *METRICS])), **rules)
    documents = {id: document.content for id, document in dataset.corpus.items()}
    answers = worst_queries(ranking, run, dataset.queries, documents, dataset.qrels, metrics[0], limit=ANSWERS)
    section = ModelSection(
        name=name,
        ranking=ranking,
        recall_curve=recall_curve(run, dataset.qrels, [k for k in _CURVE if k <= depth], **rules),
        worst_queries=answers[:WORST_QUERIES],
        answers=answers,
        threshold_card=threshold_card,
        frontier=_frontier(retriever, dataset, seed) if frontier else (),
    )
    if texts is not None:
        section = _with_thresholds(section, retriever, texts, seed)
    return ModelEvaluation(section, run)


def _frontier(retriever: Retriever, dataset: RetrievalDataset, seed: int) -> list[FrontierPoint]:
    texts = list(dataset.queries.values())
    drawn = np.random.default_rng(seed).permutation(len(texts))[:FRONTIER_QUERIES]
    vectors = retriever.model.encode_query([texts[at] for at in drawn], show_progress_bar=False)
    return measure_frontier(retriever.index, vectors, seed=seed)


def _with_thresholds(section: ModelSection, retriever: Retriever, texts: LabelledTexts, seed: int) -> ModelSection:
    sizes = Counter(texts.labels)
    if max(sizes.values(), default=0) < OPIS_CLASS_SIZE:
        raise InputError(
            f"OPIS needs classes of at least {OPIS_CLASS_SIZE} texts; the largest has {max(sizes.values())}"
        )
    vectors = retriever.model.encode_document(texts.texts, normalize_embeddings=True, show_progress_bar=False)
    labels = np.asarray(texts.labels)
    return replace(
        section,
        opis=opis(vectors, labels, min_class_size=OPIS_CLASS_SIZE, seed=seed),
        histogram=score_histogram(vectors, labels, seed=seed),
        curves=pair_curves(vectors, labels, seed=seed),
    )

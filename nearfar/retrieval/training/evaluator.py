"""Retrieval metrics during training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator

from nearfar.data import RetrievalDataset
from nearfar.errors import InputError
from nearfar.eval import evaluate_run

_METRICS = ("R@1", "R@10", "RR@10", "nDCG@10")


class RetrievalEvaluator(BaseEvaluator):
    """Exact search of a data set's queries in its corpus with the model as it is now.

    Args:
        dataset: corpus, queries and judgements.
        metrics: names as ``evaluate_run`` takes them; the first decides which model is best.
        depth: how many documents are retrieved per query; at least the deepest cut-off of the metrics.
        batch_size: texts encoded at once.

    Example:
        >>> from nearfar.data import Document, RetrievalDataset, demo_model
        >>> corpus = {"d1": Document("d1", "tremor of the hands"), "d2": Document("d2", "blue eyes")}
        >>> dataset = RetrievalDataset(corpus, {"q": "shaking hands"}, {"q": {"d1": 1}}, "tiny")
        >>> RetrievalEvaluator(dataset, metrics=["R@1"])(demo_model())
        {'tiny_R@1': 1.0}
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        metrics: Sequence[str] = _METRICS,
        depth: int = 100,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        if not metrics:
            raise InputError("metrics is empty: name at least one, for example 'R@1'")
        self.dataset, self.metrics, self.depth, self.batch_size = dataset, list(metrics), depth, batch_size
        self.name = dataset.name
        self.primary_metric = f"{self.name}_{self.metrics[0]}"
        self.greater_is_better = True

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics of the model, named after the data set."""
        mean = evaluate_run(self.run(model), self.dataset.qrels, self.metrics).mean
        if output_path is not None:
            self._append_row(Path(output_path), epoch, steps, mean)
        found: dict[str, float] = self.prefix_name_to_metrics(dict(mean), self.name)
        self.store_metrics_in_model_card_data(model, found, epoch, steps)
        return found

    def run(self, model: Any) -> dict[str, dict[str, float]]:
        """The retrieved documents of every query with their cosine similarities."""
        import faiss

        document_ids = list(self.dataset.corpus)
        options = {"batch_size": self.batch_size, "normalize_embeddings": True, "show_progress_bar": False}
        index = faiss.IndexFlatIP(model.get_embedding_dimension())
        texts = [document.content for document in self.dataset.corpus.values()]
        index.add(np.asarray(model.encode_document(texts, **options), dtype=np.float32))
        queries = np.asarray(model.encode_query(list(self.dataset.queries.values()), **options), dtype=np.float32)
        scores, rows = index.search(queries, min(self.depth, len(document_ids)))  # (Q, depth) each
        return {
            query_id: {document_ids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True)}
            for i, query_id in enumerate(self.dataset.queries)
        }

    def _append_row(self, folder: Path, epoch: float, steps: int, mean: dict[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.csv"
        is_new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["epoch", "steps", *mean])
            writer.writerow([epoch, steps, *mean.values()])

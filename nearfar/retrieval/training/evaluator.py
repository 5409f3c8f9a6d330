"""Evaluators for sentence-transformers training: retrieval of documents, and neighbours of the same class.

Under several processes sentence-transformers calls an evaluator in the first one and shares what it encodes among all;
so nothing here talks to other processes. Where a trainer calls it in each (FSDP, DeepSpeed), each finds the same, and
the first writes.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.evaluation import BaseEvaluator
from torch.utils.data import Dataset

from nearfar.data import LabelledTexts, RetrievalDataset
from nearfar.errors import InputError
from nearfar.eval import evaluate_embeddings, evaluate_run, opis
from nearfar.eval.inputs import ArrayLike
from nearfar.retrieval.training.tensor_data import embed, labels_of

_METRICS = ("R@1", "R@10", "RR@10", "nDCG@10")
CHUNK_DOCUMENTS = 8_192  # encoded and searched at a time: 24 MB of vectors of 768 dimensions
_OPIS_CLASS_SIZE = 5  # with fewer samples a class, OPIS measures mostly noise


class _Evaluator(BaseEvaluator):
    """What follows a measurement: a row in a CSV file, names with a prefix, an entry in the model card."""

    def __init__(self, name: str, primary: str, batch_size: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; at least one text is encoded at a time")
        self.name, self.batch_size = name, batch_size
        self.primary_metric = f"{name}_{primary}"

    def _encoding(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "normalize_embeddings": True, "show_progress_bar": False}

    def _record(
        self, model: Any, mean: Mapping[str, float], output_path: str | None, epoch: float, steps: int
    ) -> dict[str, float]:
        if output_path is not None and _is_first_process():
            self._append_row(Path(output_path), epoch, steps, mean)
        found: dict[str, float] = self.prefix_name_to_metrics(dict(mean), self.name)
        if hasattr(model, "model_card_data"):  # any other module has no card
            self.store_metrics_in_model_card_data(model, found, epoch, steps)
        return found

    def _append_row(self, folder: Path, epoch: float, steps: int, mean: Mapping[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.csv"
        is_new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["epoch", "steps", *mean])
            writer.writerow([epoch, steps, *mean.values()])


class RetrievalEvaluator(_Evaluator):
    """Exact search of a data set's queries in its corpus with the model as it is now.

    The corpus is encoded anew each time, a chunk at a time; of each chunk only the best documents of each query are
    kept. Memory grows with the queries times `depth`, not with the corpus.

    Args:
        dataset: corpus, queries and graded judgements.
        metrics: names as ``evaluate_run`` takes them; the first decides which model is best.
        depth: how many documents are retrieved per query; at least the deepest cut-off of the metrics.
        batch_size: texts encoded at once.
        chunk_size: documents encoded and searched at a time.

    Raises:
        InputError: no metric, or a size below 1.

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
        chunk_size: int = CHUNK_DOCUMENTS,
    ) -> None:
        if not metrics:
            raise InputError("metrics is empty: name at least one, for example 'R@1'")
        for size, value in (("depth", depth), ("chunk_size", chunk_size)):
            if value < 1:
                raise InputError(f"{size} is {value}; it must be 1 or more")
        super().__init__(dataset.name, metrics[0], batch_size)
        self.dataset, self.metrics, self.depth, self.chunk_size = dataset, list(metrics), depth, chunk_size

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics of the model, named after the data set."""
        mean = evaluate_run(self.run(model), self.dataset.qrels, self.metrics).mean
        return self._record(model, mean, output_path, epoch, steps)

    def run(self, model: Any) -> dict[str, dict[str, float]]:
        """The retrieved documents of every query with their cosine similarities."""
        import faiss

        options = self._encoding()
        queries = _finite(model.encode_query(list(self.dataset.queries.values()), **options))  # (Q, D)
        scores = np.empty((len(queries), 0), dtype=np.float32)
        rows = np.empty((len(queries), 0), dtype=np.int64)
        documents = iter(self.dataset.corpus.values())
        first = 0
        while texts := [document.content for document in islice(documents, self.chunk_size)]:
            vectors = _finite(model.encode_document(texts, **options))  # (chunk, D)
            metric = faiss.METRIC_INNER_PRODUCT
            near, places = faiss.knn(queries, vectors, min(self.depth, len(texts)), metric=metric)  # (Q, k) each
            scores, rows = _best(np.hstack([scores, near]), np.hstack([rows, places + first]), self.depth)
            first += len(texts)
        ids = list(self.dataset.corpus)
        return {
            query: {ids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True)}
            for i, query in enumerate(self.dataset.queries)
        }

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card tells of the evaluation."""
        return {"depth": self.depth, "documents": len(self.dataset.corpus), "queries": len(self.dataset.queries)}


class ClassEvaluator(_Evaluator):
    """Neighbours of the same class, and whether one threshold serves all classes: the protocol of metric learning.

    Every sample searches all others by cosine. OPIS is measured where two classes have five samples or more; it is
    NaN while the model maps everything to one point.

    Args:
        texts: labelled texts, or anything else that the model encodes, with a label each. For a ``torch.nn.Module`` a
            data set of tensors: ``TensorData``, or pairs (input, label).
        name: put before the metrics' names.
        ks: depths of ``hit@k``.
        primary: the metric that decides which model is best: ``hit@k``, ``R-precision``, ``MAP@R``, ``MRR``, or
            ``OPIS`` or ``OPIS-corrected``, of which less is better.
        batch_size: samples encoded at once.
        seed: of the noise floor of OPIS.

    Raises:
        InputError: `primary` is not measured on these texts.

    Example:
        >>> from nearfar.data import LabelledTexts, demo_model
        >>> texts = LabelledTexts(["tremor", "shaking hands", "blue eyes", "eye colour"], ["a", "a", "b", "b"])
        >>> ClassEvaluator(texts, "terms", ks=[1])(demo_model())["terms_hit@1"]
        1.0
    """

    def __init__(
        self,
        texts: LabelledTexts | Dataset[Any],
        name: str = "classes",
        ks: Sequence[int] = (1, 5, 10),
        primary: str = "MAP@R",
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(name, primary, batch_size)
        self.texts, self.ks, self.seed = texts, tuple(ks), seed
        labels = labels_of(texts) if isinstance(texts, Dataset) else texts.labels
        self.labels: NDArray[Any] = np.asarray(labels)  # (N,)
        sizes = Counter(self.labels.tolist()).values()
        self.measures_opis = sum(size >= _OPIS_CLASS_SIZE for size in sizes) >= 2
        known = [*(f"hit@{k}" for k in ks), "R-precision", "MAP@R", "MRR"]
        known += ["OPIS", "OPIS-corrected"] if self.measures_opis else []
        if primary not in known:
            raise InputError(
                f"primary is {primary!r}, which is not measured on these texts; choose among {', '.join(known)}"
            )
        self.greater_is_better = not primary.startswith("OPIS")

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics of the model, named after the evaluator."""
        if isinstance(self.texts, Dataset):
            vectors: Any = embed(model, self.texts, self.batch_size)  # (N, D)
        else:
            vectors = model.encode_document(self.texts.texts, **self._encoding())  # (N, D)
        return self._record(model, self.measure(np.asarray(vectors)), output_path, epoch, steps)

    def measure(self, embeddings: ArrayLike) -> dict[str, float]:
        """The metrics of given embeddings (N, D) of the texts, for training loops of one's own."""
        mean = dict(evaluate_embeddings(embeddings, self.labels, self.ks).mean)
        if self.measures_opis:
            mean |= self._opis(embeddings)
        return mean

    def _opis(self, embeddings: ArrayLike) -> dict[str, float]:
        try:
            found = opis(embeddings, self.labels, min_class_size=_OPIS_CLASS_SIZE, seed=self.seed)
        except InputError:
            # The labels are sound, and the embeddings were just ranked: they have collapsed to one point. Training may
            # recover from that, so it goes on.
            return {"OPIS": math.nan, "OPIS-corrected": math.nan}
        return {"OPIS": found.opis, "OPIS-corrected": found.corrected}

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card tells of the evaluation."""
        return {"samples": len(self.labels), "classes": len(set(self.labels.tolist()))}


def evaluator_list(evaluator: Any) -> list[Any]:
    """None, one evaluator or several, as a list.

    Raises:
        InputError: two of them report their main metric under one name.
    """
    if evaluator is None:
        return []
    found = list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]
    names = [each.primary_metric for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"evaluators share the metric {max(names, key=names.count)!r}; give each another name")
    return found


def _finite(vectors: Any) -> NDArray[np.float32]:
    found = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(found).all():
        raise InputError("the model's embeddings are not finite: training has diverged; lower the learning rate")
    return found


def _best(
    scores: NDArray[np.float32], rows: NDArray[np.int64], depth: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest `depth` scores of each row with their documents."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]  # (Q, depth)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _is_first_process() -> bool:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not ready or torch.distributed.get_rank() == 0

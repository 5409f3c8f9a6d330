"""Calibrate thresholds with a model or an index at hand, and keep one in a model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nearfar.data.documents import LabelledTexts
from nearfar.errors import DataFileError, InputError
from nearfar.eval.thresholds.calibration import PairRisk, calibrate_threshold
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.eval.thresholds.queries import calibrate_no_answer
from nearfar.retrieval.encoders import fingerprint, load_encoder
from nearfar.retrieval.index.structures import check_metric
from nearfar.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

THRESHOLD_NAME = "threshold.json"


def calibrate_texts(
    model: SentenceTransformer,
    texts: LabelledTexts,
    *,
    risk: PairRisk,
    alpha: float,
    delta: float = 0.05,
    beta: float | None = None,
    prior: float | None = None,
    reference: LabelledTexts | None = None,
    method: Literal["exact", "bootstrap"] = "exact",
    seed: int = 0,
) -> ThresholdCard:
    """Calibrate the cosine from which on two texts are taken to match; see `calibrate_threshold` for the risks.

    Args:
        model: encodes all texts as documents.
        texts: with a class each; classes that the training did not see.
        risk: "far", "miss", "precision" or "class_far".
        alpha: level of the risk.
        delta: chance that the promise is broken; 0.05 by convention.
        beta: for "class_far", the share of classes that may exceed alpha.
        prior: for "precision", the share of judged pairs that truly match.
        reference: for "class_far", texts of other classes against which rates are measured.
        method: "exact" or "bootstrap".
        seed: of the random matchings and draws.

    Returns:
        A pair card that names the model's fingerprint and prompts.

    Raises:
        InputError: too little data for alpha (the smallest possible alpha is named), a text that the model turns into
            a zero vector, or a class that is in the reference too.

    Example:
        >>> from nearfar.data import demo_dataset, demo_model
        >>> card = calibrate_texts(demo_model(), demo_dataset().dev_texts, risk="far", alpha=0.05)
        >>> card.kind, card.units, card.rates["far"] < 0.05
        ('pair', 250, True)
    """
    if reference is not None and (shared := set(texts.labels) & set(reference.labels)):
        raise InputError(
            f"class {min(shared)!r} is in the texts and in the reference; give a reference of other classes"
        )
    found = fingerprint(model)
    return calibrate_threshold(
        model.encode_document(texts.texts, show_progress_bar=False),  # (N, dimension)
        texts.labels,
        risk=risk,
        alpha=alpha,
        delta=delta,
        beta=beta,
        prior=prior,
        reference=None if reference is None else model.encode_document(reference.texts, show_progress_bar=False),
        method=method,
        seed=seed,
        encoder=found.digest,
        prompts=found.prompts,
    )


def calibrate_search(
    retriever: Retriever,
    queries: Sequence[str],
    *,
    alpha: float,
    delta: float = 0.05,
    groups: Sequence[str] | Sequence[int] | None = None,
) -> ThresholdCard:
    """Calibrate the score from which on a search may answer, on queries that the index has no answer to.

    Every document is looked at, whatever the factory: a search with a smaller `nprobe` finds no higher scores, so the
    promise holds for it too. Keep the card with `retriever.index.set_threshold(name, card)`.

    Args:
        retriever: a model with its index.
        queries: texts without an answer among the documents, drawn like those to come.
        alpha: share of unanswerable queries that may get an answer.
        delta: chance that the promise is broken; 0.05 by convention.
        groups: one label for all wordings of one need, when queries rephrase one another.

    Returns:
        A query card for the index as it is now.

    Raises:
        InputError: the index is empty, a query is blank, or there are too few for alpha (the smallest possible alpha
            is named).

    Example:
        >>> import tempfile
        >>> from nearfar.data import Document, demo_model
        >>> with Retriever.create(tempfile.mkdtemp(), demo_model()) as retriever:
        ...     added = retriever.index_documents([Document("a", "broken bone"), Document("b", "fever")])
        ...     unanswerable = [f"train number {i} to Geneva" for i in range(60)]
        ...     retriever.index.set_threshold("search", calibrate_search(retriever, unanswerable, alpha=0.05))
        ...     found = retriever.search(["fractured bone", "boat to Geneva"], matches_only=True)
        >>> (found.counts > 0).tolist()
        [True, False]
    """
    index = retriever.index
    if len(index) == 0:
        raise InputError(f"index {str(index.path)!r} is empty; index the documents before calibrating")
    if isinstance(queries, str) or not queries:
        raise InputError(f"queries must be a list of unanswerable texts, got {queries!r}")
    lists = index.info()["nlist"] or 1
    found = fingerprint(retriever.model)
    return calibrate_no_answer(
        retriever.search(queries, 1, nprobe=lists).scores[:, 0],  # (Q,)
        alpha=alpha,
        corpus_size=len(index),
        delta=delta,
        groups=groups,
        metric=check_metric(index.metric),
        encoder=found.digest,
        prompts=found.prompts,
    )


def save_threshold(model_folder: str | Path, card: ThresholdCard) -> Path:
    """Keep a pair card in a saved model's folder, as ``threshold.json``, in place of an earlier one.

    Args:
        model_folder: of the model that the card was calibrated with; it is loaded and checked.
        card: of pairs. A query card depends on a corpus: keep it with `VectorIndex.set_threshold`.

    Returns:
        The path of the file.

    Raises:
        InputError: it is a query card.
        ModelMismatchError: the card belongs to another model.
        DataFileError: the folder holds no model, or cannot be written.
    """
    folder = Path(model_folder)
    card.require("pair", encoder=fingerprint(load_encoder(folder)).digest)
    return card.save(folder / THRESHOLD_NAME)


def load_threshold(model_folder: str | Path) -> ThresholdCard:
    """Read the card that `save_threshold` kept in a model's folder.

    A model that is saved over another one inherits its card: where that may happen, check with
    ``card.require("pair", encoder=fingerprint(model).digest)``.

    Raises:
        DataFileError: there is no such file, or it is not a card.
    """
    path = Path(model_folder) / THRESHOLD_NAME
    if not path.is_file():
        raise DataFileError(
            model_folder, f"holds no {THRESHOLD_NAME}; calibrate one with: nearfar calibrate ... --save {model_folder}"
        )
    return ThresholdCard.load(path)

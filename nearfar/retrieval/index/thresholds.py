"""Threshold cards in an index: which fit it, which one is meant, and how one cuts a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nearfar.errors import InputError, ModelMismatchError, UnknownNameError
from nearfar.eval.thresholds.card import Kind, ThresholdCard
from nearfar.retrieval.index.manifest import Manifest
from nearfar.retrieval.index.results import Rows
from nearfar.retrieval.index.vectors import Float32


def check_card(card: ThresholdCard, manifest: Manifest, kind: Kind | None = None) -> list[str]:
    """Check that a card fits the scores of an index, and return warnings.

    Args:
        card: to be stored or used.
        manifest: of the index.
        kind: the kind that is needed; None for any.

    Raises:
        InputError: the card is of another kind or metric, or not of exact scores.
        ModelMismatchError: the card belongs to another encoder.
    """
    encoder = None if manifest.encoder is None else manifest.encoder.digest
    if encoder is None and card.encoder is not None:
        raise ModelMismatchError(
            f"the card belongs to the encoder {card.encoder}, and the index records none; create the index with "
            "Retriever.create, or with VectorIndex.create(encoder=fingerprint(model))"
        )
    return card.require(
        kind or card.kind, metric=manifest.metric, encoder=encoder, score_source="exact", corpus_size=manifest.count
    )


def choose_card(
    cards: Mapping[str, ThresholdCard], name: str | None, index: Path, kind: Kind | None = None
) -> ThresholdCard:
    """The card of a name; without a name the only one there is (of `kind`, when given).

    Raises:
        UnknownNameError: there is no card of that name.
        InputError: there is none to choose, or more than one.
    """
    if name is not None and name in cards:
        return cards[name]
    if name is not None and cards:
        raise UnknownNameError("threshold", name, cards)
    fitting = [own for own, card in cards.items() if kind in (None, card.kind)]
    if len(fitting) == 1:
        return cards[fitting[0]]
    if fitting:
        raise InputError(f"index {str(index)!r} holds several thresholds ({', '.join(sorted(fitting))}); name one")
    what = "threshold" if kind is None else f"{kind} threshold"
    raise InputError(
        f"index {str(index)!r} holds no {what}; calibrate one with: "
        f"nearfar calibrate --index {index} --unanswerable queries.txt --alpha 0.05"
    )


def cut(scores: Float32, rows: Rows, threshold: float) -> tuple[Float32, Rows]:
    """Keep what reaches the threshold of (Q, k) ranked hits; the rest becomes -inf and -1."""
    # Compared in float64: numpy would round the threshold to the scores' float32, perhaps downwards.
    keep = scores.astype(np.float64) >= threshold  # (Q, k)
    return np.where(keep, scores, np.float32(-np.inf)), np.where(keep, rows, -1)

"""The record of one calibrated threshold: what was promised, on which data, and for whom it fails."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nearfar.errors import DataFileError, InputError, ModelMismatchError
from nearfar.eval.inputs import ArrayLike

if TYPE_CHECKING:
    from nearfar.eval.thresholds.drift import DriftCheck

Risk: TypeAlias = Literal["far", "miss", "precision", "class_far", "no_answer"]
Kind: TypeAlias = Literal["pair", "query"]
Metric: TypeAlias = Literal["cosine", "inner_product", "l2"]
ScoreSource: TypeAlias = Literal["exact", "compressed"]

_GROWTH = 1.25


class ClassFailure(BaseModel):
    """A class for which the threshold does not keep `alpha`.

    Args:
        label: of the class.
        rate: its own rate at the threshold, as measured on the calibration data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    label: int | str
    rate: float


class ThresholdCard(BaseModel):
    """A threshold with its promise: a score of at least `threshold` is accepted.

    Cards come from `calibrate_threshold` (pairs: verification, deduplication) and `calibrate_no_answer` (queries:
    search). The two kinds answer different questions and never stand in for one another: see `require`.

    Args:
        kind: "pair" or "query".
        threshold: the score from which on a match is accepted.
        risk: what is promised; see `calibrate_threshold`.
        alpha: the level of the risk.
        delta: chance, over the draw of the calibration data, that the promise is broken.
        beta: for "class_far", the share of new classes that may exceed alpha.
        prior: for "precision", the share of judged pairs that truly match.
        method: "exact" (the promise holds at any number of units) or "bootstrap" (approximate).
        unit: what was drawn independently: "class_pairs", "classes", "queries" or "groups".
        units: how many of them the bound rests on.
        classes: number of classes in the data, None for queries.
        samples: number of samples, or of queries.
        reference_samples: for "class_far" against a fixed reference set, its size.
        estimated_risk: the risk at the threshold as measured on the calibration data; for "class_far", the share of
            the classes whose own measured rate exceeds alpha.
        certified_risk: the level that the risk stays below with confidence 1 - delta: alpha, or beta for "class_far".
            None for the bootstrap, which certifies nothing.
        rates: further measured rates at the threshold, by name: "far", "miss", "precision" or "no_answer".
        promise: the promise in one sentence.
        assumptions: what it rests on, in sentences.
        failing_classes: classes whose own measured rate exceeds alpha, worst first: the false-accept rate, or the miss
            rate for "miss".
        corpus_size: for queries, documents in the corpus that the top scores were found in.
        encoder: digest of the encoder's fingerprint.
        metric: of the scores.
        score_source: "exact" scores, or "compressed" ones straight from a quantised index.
        prompts: what was put before the texts, by role, such as {"query": "search for: "}.
        seed: of the random matchings and draws.
        created: time in UTC, ISO 8601.
        versions: of nearfar, numpy and Python.
        format_version: of this record.

    Example:
        >>> from nearfar.eval import calibrate_no_answer
        >>> card = calibrate_no_answer([0.2, 0.5, 0.4] * 20, alpha=0.1, corpus_size=1000)
        >>> ThresholdCard.from_json(card.to_json()) == card
        True
        >>> card.require("query", corpus_size=1100)
        []
        >>> card.require("query", corpus_size=2000)[0][:39]
        'the corpus has grown from 1000 to 2000 '
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    kind: Kind
    threshold: float
    risk: Risk
    alpha: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    beta: float | None = Field(default=None, gt=0, lt=1)
    prior: float | None = Field(default=None, gt=0, lt=1)
    method: Literal["exact", "bootstrap"] = "exact"
    unit: Literal["class_pairs", "classes", "queries", "groups"]
    units: int = Field(ge=1)
    classes: int | None = None
    samples: int = Field(ge=1)
    reference_samples: int | None = None
    estimated_risk: float
    certified_risk: float | None
    rates: dict[str, float] = {}
    promise: str
    assumptions: tuple[str, ...]
    failing_classes: tuple[ClassFailure, ...] = ()
    corpus_size: int | None = Field(default=None, ge=1)
    encoder: str | None = None
    metric: Metric = "cosine"
    score_source: ScoreSource = "exact"
    prompts: dict[str, str] = {}
    seed: int
    created: str
    versions: dict[str, str]

    @model_validator(mode="after")
    def _kind_fits_risk(self) -> ThresholdCard:
        if (self.kind == "query") != (self.risk == "no_answer"):
            raise ValueError(f"kind is {self.kind!r} and risk is {self.risk!r}; only no_answer is a risk of queries")
        if self.kind == "query" and self.corpus_size is None:
            raise ValueError("a query card must state its corpus_size: the top score grows with the corpus")
        return self

    def require(
        self,
        kind: Kind,
        *,
        metric: Metric | None = None,
        encoder: str | None = None,
        score_source: ScoreSource | None = None,
        corpus_size: int | None = None,
    ) -> list[str]:
        """Check that the card may be used for a purpose; what is None is not checked.

        Args:
            kind: "query" to cut the results of a search, "pair" to judge single pairs.
            metric: of the scores to be cut.
            encoder: digest of the fingerprint of the encoder in use.
            score_source: of the scores to be cut.
            corpus_size: documents searched now.

        Returns:
            Warnings: one when the corpus has grown by more than a quarter.

        Raises:
            InputError: the kind, metric or score source differs.
            ModelMismatchError: the encoder differs, or the card does not name one.
        """
        if kind != self.kind:
            risks = {"pair": "the risk of single pairs", "query": "the risk of whole searches"}
            raise InputError(
                f"this is a {self.kind} card ({risks[self.kind]}) and a {kind} card is needed; calibrate one with "
                + ("calibrate_no_answer" if kind == "query" else "calibrate_threshold")
            )
        for name, wanted, own in (("metric", metric, self.metric), ("score source", score_source, self.score_source)):
            if wanted is not None and wanted != own:
                raise InputError(
                    f"the card's {name} is {own!r} and the scores' is {wanted!r}; calibrate on such scores"
                )
        if encoder is not None and encoder != self.encoder:
            named = "names no encoder" if self.encoder is None else f"belongs to the encoder {self.encoder}"
            raise ModelMismatchError(f"the card {named}, and {encoder} is in use; calibrate again with that encoder")
        if corpus_size is not None and self.corpus_size is not None and corpus_size > _GROWTH * self.corpus_size:
            return [
                f"the corpus has grown from {self.corpus_size} to {corpus_size} documents since the calibration: more "
                "documents give every query a higher top score; calibrate again"
            ]
        return []

    def check(
        self,
        data: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        reference: ArrayLike | None = None,
        level: float = 0.01,
        seed: int = 0,
    ) -> DriftCheck:
        """Test on new data whether the promise still holds.

        Args:
            data: embeddings (N, D) of new samples for a pair card; the top scores (Q,) of new unanswerable queries,
                one of each group, for a query card.
            labels: N labels, for a pair card.
            reference: the reference embeddings of a card that was calibrated against some.
            level: chance of a false alarm.
            seed: of the draw of independent pairs.

        Raises:
            InputError: the data does not fit the card.
        """
        from nearfar.eval.thresholds.drift import drift_check

        return drift_check(self, data, labels, reference=reference, level=level, seed=seed)

    def to_json(self) -> str:
        """The card as JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ThresholdCard:
        """Read what `to_json` wrote.

        Raises:
            InputError: not JSON, or not a card.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"not a threshold card: {_first_problem(error)}") from error

    def save(self, path: str | Path) -> Path:
        """Write the card as a JSON file, which replaces an older one in one step.

        Raises:
            DataFileError: the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise DataFileError(target, f"cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | Path) -> ThresholdCard:
        """Read a card's file.

        Raises:
            DataFileError: the file is missing, unreadable or not a card.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise DataFileError(path, f"cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise DataFileError(path, f"not a threshold card: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

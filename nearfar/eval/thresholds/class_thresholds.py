"""One threshold for each class, certified on its own or for all classes at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike
from nearfar.eval.thresholds.bounds import MeanTest, smallest_level
from nearfar.eval.thresholds.class_rates import NOWHERE, certified_thresholds
from nearfar.eval.thresholds.provenance import check_levels, now, versions
from nearfar.eval.thresholds.units import class_set


class ClassThresholds(BaseModel):
    """Thresholds by class, each with a certified false-accept rate of its class.

    Args:
        labels: of the C classes, ascending.
        thresholds: cosine from which on a sample matches the class; None where no threshold up to 1 is certified.
        alpha: level of each class's false-accept rate.
        delta: chance that the promise is broken.
        scope: "joint" (with confidence 1 - delta every class keeps alpha) or "each" (each class alone does).
        units: other classes that each bound rests on.
        promise: the promise in one sentence.
        encoder: digest of the encoder's fingerprint.
        created: time in UTC, ISO 8601.
        versions: of nearfar, numpy and Python.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    labels: tuple[int, ...] | tuple[str, ...]
    thresholds: tuple[float | None, ...]
    alpha: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    scope: Literal["joint", "each"]
    units: int
    promise: str
    encoder: str | None = None
    created: str
    versions: dict[str, str]

    def __getitem__(self, label: int | str) -> float | None:
        """The threshold of a class."""
        try:
            return self.thresholds[self.labels.index(label)]
        except ValueError:
            raise InputError(f"no threshold for class {label!r}: it was not in the calibration data") from None

    def to_json(self) -> str:
        """The thresholds as JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ClassThresholds:
        """Read what `to_json` wrote.

        Raises:
            InputError: not JSON, or not class thresholds.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"not class thresholds: {error.errors()[0]['msg']}") from error


def calibrate_classes(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float,
    delta: float = 0.05,
    joint: bool = True,
    encoder: str | None = None,
) -> ClassThresholds:
    """Calibrate a threshold for each class of a catalogue, against samples of new other classes.

    Given the samples of a class, the other classes are independent draws; their accepted shares are bet on as in
    `calibrate_threshold`. Needs about log(C / delta) / alpha classes for the joint promise (Bonferroni's correction:
    each class at delta / C), and 3 / alpha for each class alone.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows.
        labels: N integers or strings.
        alpha: level of each class's false-accept rate against another class drawn at random.
        delta: chance that the promise is broken; 0.05 by convention.
        joint: whether the promise is for all classes at once; False gives each class its own promise, and about a share
            delta of those may be broken.
        encoder: digest of the encoder's fingerprint, for the record.

    Returns:
        The thresholds, with their scope in words.

    Raises:
        InputError: malformed input, or too few classes for alpha; the message names the smallest alpha.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat(np.arange(300), 3)
        >>> points = rng.normal(size=(300, 16))[labels] + 0.3 * rng.normal(size=(900, 16))
        >>> found = calibrate_classes(points, labels, alpha=0.1)
        >>> found.scope, found.units, 0.2 < found[7] < 0.8
        ('joint', 299, True)

    Source: Waudby-Smith and Ramdas, 2024, https://arxiv.org/abs/2010.09686, for the bound.
    """
    check_levels(alpha, delta)
    classes = class_set(embeddings, labels)
    count = len(classes.sizes)
    level = delta / count if joint else delta
    nothing = np.zeros((1, count - 1))
    if not MeanTest.of(alpha, count - 1, level).refutes(nothing):
        smallest = smallest_level(lambda at: MeanTest.of(at, count - 1, level).refutes(nothing))
        can = "they certify none" if smallest is None else f"the smallest alpha they can is {smallest}"
        scope = "for all classes at once" if joint else "for each class alone"
        raise InputError(f"{count} classes cannot certify alpha={alpha} {scope} at delta={delta}; {can}")
    own = certified_thresholds(classes, alpha, level)
    whole = "every class has" if joint else "each class alone (not all at once) has"
    return ClassThresholds(
        labels=tuple(classes.names),  # type: ignore[arg-type]
        thresholds=tuple(None if value >= NOWHERE else float(value) for value in own),
        alpha=alpha,
        delta=delta,
        scope="joint" if joint else "each",
        units=count - 1,
        promise=f"With confidence {1 - delta:.4g}, {whole} a false-accept rate below {alpha:.4g} at its threshold, "
        "against samples of another class drawn as these were.",
        encoder=encoder,
        created=now(),
        versions=versions(),
    )

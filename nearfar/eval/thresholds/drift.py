"""Does new data contradict the promise of a card? An exact binomial test on independent units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike, unit_rows
from nearfar.eval.thresholds.bounds import MeanTest, binomial_tail
from nearfar.eval.thresholds.class_rates import reference_rates, shares_of_class
from nearfar.eval.thresholds.queries import query_scores
from nearfar.eval.thresholds.units import SLACK, ClassSet, class_set, matchings

if TYPE_CHECKING:
    from nearfar.eval.thresholds.card import ThresholdCard

_CLASS_LEVEL = 0.05


@dataclass(frozen=True)
class DriftCheck:
    """The outcome of a drift check.

    Attributes:
        contradicted: whether the promise is contradicted: `p_value` is below the level asked for.
        p_value: chance of as many failures or more, if the promise holds.
        observed_risk: share of the units that failed.
        promised_risk: the share that the promise allows.
        units: independent units that were tested.
        exact: False when the chance of a false alarm is not guaranteed; `verdict` says why.
        verdict: the outcome in a sentence.
    """

    contradicted: bool
    p_value: float
    observed_risk: float
    promised_risk: float
    units: int
    exact: bool
    verdict: str


def drift_check(
    card: ThresholdCard,
    data: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    reference: ArrayLike | None = None,
    level: float = 0.01,
    seed: int = 0,
) -> DriftCheck:
    """Test the promise of a card on new data; see `ThresholdCard.check`.

    One pair is drawn from each disjoint pair of classes ("far", "precision") or from each class ("miss"), so that the
    outcomes are independent and their number binomial. For "precision" each pair of classes shows a matching pair
    with the chance of the card's prior, and the accepted pairs are counted. For "class_far" classes are counted:
    against the reference set of the card exactly; else those whose own rate is above alpha beyond doubt (at 5 %),
    which is approximate, as new classes are then measured against one another.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be between 0 and 1")
    if card.kind == "query":
        if labels is not None:
            raise InputError("this is a query card: give the top scores of unanswerable queries, and no labels")
        failed = query_scores(data) >= card.threshold
        return _result(card, int(failed.sum()), len(failed), card.alpha, level)
    if labels is None:
        raise InputError("this is a pair card: give embeddings and their labels")
    if (reference is None) != (card.reference_samples is None):
        need = "needs the reference embeddings it was" if reference is None else "takes no reference: it was not"
        raise InputError(f"this card {need} calibrated against")
    classes = class_set(data, labels)
    rng = np.random.default_rng(seed)
    if card.risk == "class_far":
        return _check_classes(card, classes, reference, level)
    if card.risk == "miss":
        failed = ~_accepted(classes, *_positive_pairs(classes, rng), card.threshold)
    elif card.risk == "far":
        failed = _accepted(classes, *_cross_pairs(classes, rng), card.threshold)
    else:
        failed = _wrong_among_accepted(card, classes, rng)
    return _result(card, int(failed.sum()), len(failed), card.alpha, level)


def _check_classes(card: ThresholdCard, classes: ClassSet, reference: ArrayLike | None, level: float) -> DriftCheck:
    beta = card.beta or 0.0
    if reference is not None:
        failed = reference_rates(classes, unit_rows(reference), card.threshold) > card.alpha
        return _result(card, int(failed.sum()), len(failed), beta, level)
    # Betting on "the rate is at most alpha" is betting on "the mean of 1 - x is at least 1 - alpha".
    test = MeanTest.of(1.0 - card.alpha, len(classes.sizes) - 1, _CLASS_LEVEL)
    count = sum(
        test.refutes(1.0 - shares_of_class(classes, code, card.threshold)) for code in range(len(classes.sizes))
    )
    return _result(card, count, len(classes.sizes), beta + (1.0 - beta) * _CLASS_LEVEL, level, exact=False)


def _wrong_among_accepted(card: ThresholdCard, classes: ClassSet, rng: np.random.Generator) -> NDArray[np.bool_]:
    large = np.flatnonzero(classes.sizes >= 2)
    if len(large) < 2:
        raise InputError(f"{len(large)} classes have two or more samples; a precision needs at least 2 of them")
    pairs = matchings(large, rng, 1)[0]  # (n, 2)
    matching = rng.random(len(pairs)) < (card.prior or 0.0)
    left = _draw(classes, pairs[:, 0], rng)
    right = np.where(matching, _another(classes, left, rng), _draw(classes, pairs[:, 1], rng))
    accepted = _accepted(classes, left, right, card.threshold)
    return ~matching[accepted]


def _cross_pairs(classes: ClassSet, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = matchings(np.arange(len(classes.sizes)), rng, 1)[0]  # (n, 2)
    return _draw(classes, pairs[:, 0], rng), _draw(classes, pairs[:, 1], rng)


def _positive_pairs(classes: ClassSet, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left = _draw(classes, np.flatnonzero(classes.sizes >= 2), rng)
    return left, _another(classes, left, rng)


def _draw(classes: ClassSet, which: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One random row of each class."""
    return np.asarray(classes.starts[which] + rng.integers(classes.sizes[which]))


def _another(classes: ClassSet, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Another random row of each row's class, which has two or more."""
    codes = classes.codes[rows]
    step = 1 + rng.integers(classes.sizes[codes] - 1)
    return np.asarray(classes.starts[codes] + (rows - classes.starts[codes] + step) % classes.sizes[codes])


def _accepted(
    classes: ClassSet, left: NDArray[np.int64], right: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    scores = np.einsum("ij,ij->i", classes.unit[left], classes.unit[right])
    return np.asarray(scores >= threshold - SLACK)


def _result(
    card: ThresholdCard, failed: int, units: int, promised: float, level: float, exact: bool = True
) -> DriftCheck:
    p_value = binomial_tail(failed, units, promised) if units else 1.0
    contradicted = p_value < level
    verdict = (
        f"{failed} of {units} units failed, where the promise ({card.risk}) allows a share of {promised:.4g}: "
        + ("the promise is contradicted; calibrate again on such data" if contradicted else "no contradiction")
        + f" (p = {p_value:.2g})."
    )
    if card.method == "bootstrap":
        exact = False
        verdict += " The card's promise is approximate."
    elif not exact:
        verdict += " Approximate: the classes were measured against one another."
    return DriftCheck(contradicted, p_value, failed / units if units else 0.0, promised, units, exact, verdict)

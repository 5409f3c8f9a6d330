"""One threshold with a stated risk, certified on units that are independent.

Pairs that share a sample or a class are not independent, so a bound that counts pairs promises too much. Here the units
are classes, or disjoint pairs of classes, and the bounds hold at any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.inputs import ArrayLike, Floats, unit_rows
from nearfar.eval.thresholds.bootstrap import bootstrap_far, bootstrap_miss
from nearfar.eval.thresholds.bounds import MeanTest, allowed_failures, smallest_level
from nearfar.eval.thresholds.card import ClassFailure, ScoreSource, ThresholdCard
from nearfar.eval.thresholds.class_rates import (
    NOWHERE,
    TolerancePlan,
    certifiable_by_class,
    certified_thresholds,
    class_rates,
    reference_rates,
    reference_thresholds,
)
from nearfar.eval.thresholds.precision import certify_precision
from nearfar.eval.thresholds.provenance import check_levels, now, versions
from nearfar.eval.thresholds.units import (
    SLACK,
    ClassSet,
    class_set,
    cross_scores,
    positive_scores,
    random_matchings,
    smallest_threshold,
)
from nearfar.eval.thresholds.wording import assumptions, promise

PairRisk: TypeAlias = Literal["far", "miss", "precision", "class_far"]
Unit: TypeAlias = Literal["class_pairs", "classes"]

_UNITS: dict[str, Unit] = {"far": "class_pairs", "miss": "classes", "precision": "class_pairs", "class_far": "classes"}


@dataclass(frozen=True)
class _Found:
    """A threshold and the number of independent units its bound rests on."""

    threshold: float
    units: int


def calibrate_threshold(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    risk: PairRisk,
    alpha: float,
    delta: float = 0.05,
    unit: Unit | None = None,
    beta: float | None = None,
    prior: float | None = None,
    reference: ArrayLike | None = None,
    method: Literal["exact", "bootstrap"] = "exact",
    seed: int = 0,
    encoder: str | None = None,
    prompts: dict[str, str] | None = None,
    score_source: ScoreSource = "exact",
) -> ThresholdCard:
    """Calibrate a threshold on the cosine, from which on two samples are taken to match.

    The promise holds with confidence 1 - `delta` for new classes drawn as these were. The risks:

    - "far": the chance that a pair of samples of two different classes is accepted is below alpha. The smallest
      threshold at which, and above which, the bound is below alpha (risk-controlling prediction sets).
    - "miss": the chance that a pair of samples of one class is rejected is below alpha. The largest threshold.
    - "precision": of the accepted pairs at most a share alpha is wrong, where a share `prior` of the judged pairs truly
      match. Not monotone, so thresholds are tested in a fixed sequence (Learn then Test): a quarter of the classes
      finds the most precise threshold, and on the others thresholds are tested from there downwards until one fails.
    - "class_far": at least a share 1 - `beta` of new classes have an own false-accept rate of at most alpha. An order
      statistic of the classes' own thresholds (a tolerance bound). By default a class's own rate is the true one,
      against all other classes: each class's threshold is itself certified, which needs about 7 / alpha classes. With
      `reference` it is the rate measured against exactly those samples, such as the catalogue or the training set:
      59 classes do for a beta and a delta of 0.05, whatever alpha.

    Bounds on means are bets on per-unit shares, averaged over up to 16 random matchings of the classes where the unit
    is a pair of classes (means of fortunes stay valid; means of p-values or of shares would not). Classes and pairs of
    classes count alike, whatever their sizes. Where every pair is looked at, up to 32 random samples of a class are.

    Args:
        embeddings: array or tensor (N, D), finite, no zero rows.
        labels: N integers or strings. A class may have one sample only; it then has no part in "miss" and "precision".
        risk: what to promise. For searches see `calibrate_no_answer`.
        alpha: level of the risk; fix it before looking at results.
        delta: chance that the promise is broken; 0.05 by convention.
        unit: what is independent; each risk has one ("class_pairs" for "far" and "precision", "classes" for the
            others), and another raises.
        beta: for "class_far" only, the share of classes that may exceed alpha; 0.05 by default.
        prior: for "precision" only, and required there.
        reference: for "class_far" only, embeddings (R, D) of samples of other classes than those in `labels`.
        method: "bootstrap" for an approximate threshold by drawing classes again ("far" and "miss" only). It is less
            strict, certifies nothing, and the card says so.
        seed: of the matchings and draws. Do not try several: the best of them keeps no promise.
        encoder: digest of the encoder's fingerprint, for the card.
        prompts: what was put before the texts, by role, for the card.
        score_source: for the card.

    Returns:
        A pair card, with the classes for which the threshold fails. Time grows with N squared for that list and for
        "class_far", memory with N.

    Raises:
        InputError: malformed input, or too little data for alpha; the message names the smallest alpha it can certify.
        UnknownNameError: an unknown risk.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat(np.arange(400), 4)
        >>> points = rng.normal(size=(400, 16))[labels] + 0.3 * rng.normal(size=(1600, 16))
        >>> card = calibrate_threshold(points, labels, risk="far", alpha=0.05)
        >>> card.units, 0.3 < card.threshold < 0.6, card.estimated_risk < 0.05
        (200, True, True)

    Source: Bates et al., "Distribution-free, risk-controlling prediction sets", 2021, https://arxiv.org/abs/2101.02703;
        Angelopoulos et al., "Learn then Test", 2021, https://arxiv.org/abs/2110.01052; Wilks, "Determination of sample
        sizes for setting tolerance limits", 1941.
    """
    _check_options(risk, unit, beta, prior, reference, method)
    check_levels(alpha, delta, beta=beta, prior=prior)
    classes = class_set(embeddings, labels)
    others = None if reference is None else _reference_rows(reference, classes)
    beta = (0.05 if beta is None else beta) if risk == "class_far" else None
    rng = np.random.default_rng(seed)
    if method == "bootstrap":
        found = _bootstrap(classes, risk, alpha, delta, rng)
    elif risk == "far":
        found = _far(classes.thinned(rng), alpha, delta, rng)
    elif risk == "miss":
        found = _miss(classes.thinned(rng), alpha, delta)
    elif risk == "precision":
        found = _Found(*certify_precision(classes.thinned(rng), alpha, delta, prior or 0.0, rng))
    else:
        found = _class_far(classes, others, alpha, delta, beta or 0.0)
    estimate, rates, own = _measure(classes, others, risk, found.threshold, prior)
    failing = _failures(classes, own, alpha)
    against = "as measured against the reference samples" if others is not None else "against all other classes"
    return ThresholdCard(
        kind="pair",
        threshold=found.threshold,
        risk=risk,
        alpha=alpha,
        delta=delta,
        beta=beta,
        prior=prior,
        method=method,
        unit=_UNITS[risk] if method == "exact" else "classes",
        units=found.units,
        classes=len(classes.sizes),
        samples=len(classes.codes),
        reference_samples=None if others is None else len(others),
        estimated_risk=len(failing) / len(classes.sizes) if risk == "class_far" else estimate,
        certified_risk=None if method == "bootstrap" else beta if risk == "class_far" else alpha,
        rates=rates,
        promise=("Approximately: " if method == "bootstrap" else "")
        + promise(risk, alpha, delta, beta, prior, against),
        assumptions=assumptions(risk, method, others is not None),
        failing_classes=failing,
        encoder=encoder,
        score_source=score_source,
        prompts=prompts or {},
        seed=seed,
        created=now(),
        versions=versions(),
    )


def _far(classes: ClassSet, alpha: float, delta: float, rng: np.random.Generator) -> _Found:
    rounds = random_matchings(classes, np.arange(len(classes.sizes)), rng)
    scores = cross_scores(classes, rounds)
    units = scores.shape[1]
    test = MeanTest.of(alpha, units, delta)
    threshold = smallest_threshold(lambda t: test.refutes(scores.share_at_least(t - SLACK)))
    if threshold is None:
        strictest = scores.share_at_least(1.0 - SLACK)
        raise _too_little(f"{units} disjoint pairs of classes", "far", alpha, delta, strictest)
    return _Found(threshold, units)


def _miss(classes: ClassSet, alpha: float, delta: float) -> _Found:
    among = np.flatnonzero(classes.sizes >= 2)
    scores = positive_scores(classes, among)
    test = MeanTest.of(alpha, len(among), delta)

    def holds(mirrored: float) -> bool:
        return test.refutes(1.0 - scores.share_at_least(SLACK - mirrored))

    mirrored = smallest_threshold(holds)
    if mirrored is None:
        loosest = 1.0 - scores.share_at_least(SLACK - 1.0)
        raise _too_little(f"{len(among)} classes of two or more samples", "miss", alpha, delta, loosest)
    return _Found(-mirrored, len(among))


def _class_far(classes: ClassSet, others: Floats | None, alpha: float, delta: float, beta: float) -> _Found:
    count = len(classes.sizes)
    if others is not None:
        failures = allowed_failures(count, beta, delta)
        if failures < 0:
            raise _too_few_classes(count, beta, delta, delta)
        return _Found(_reached_by_all_but(reference_thresholds(classes, others, alpha), failures, alpha), count)
    plan = TolerancePlan.of(count, beta, delta)
    if plan is None:
        raise _too_few_classes(count, beta, delta, delta / 2.0)
    own = certified_thresholds(classes, alpha, plan.level)
    if np.sort(own)[count - 1 - plan.failures] >= NOWHERE:
        smallest = smallest_level(certifiable_by_class(classes, plan))
        can = "they certify none" if smallest is None else f"the smallest alpha they can is {smallest}"
        raise InputError(
            f"{count} classes cannot certify alpha={alpha} for risk='class_far' at beta={beta} and delta={delta}; "
            f"{can}. Or give reference=, samples of other classes, for a promise about rates measured against those"
        )
    return _Found(_reached_by_all_but(own, plan.failures, alpha), count)


def _reached_by_all_but(own: NDArray[np.float64], failures: int, alpha: float) -> float:
    threshold = float(np.sort(own)[len(own) - 1 - failures])
    if threshold >= NOWHERE:
        raise InputError(
            f"more than {failures} classes share near-identical samples with the reference: even a cosine of 1 accepts "
            f"more than alpha={alpha} of their pairs; check that the reference holds none of these classes"
        )
    return threshold


def _bootstrap(classes: ClassSet, risk: PairRisk, alpha: float, delta: float, rng: np.random.Generator) -> _Found:
    if risk == "far":
        return _Found(min(1.0, bootstrap_far(classes, alpha, delta, rng)), len(classes.sizes))
    threshold = bootstrap_miss(classes.thinned(rng), alpha, delta, rng)
    return _Found(max(-1.0, threshold), int((classes.sizes >= 2).sum()))


def _measure(
    classes: ClassSet, others: Floats | None, risk: PairRisk, threshold: float, prior: float | None
) -> tuple[float, dict[str, float], NDArray[np.float64]]:
    """The measured risk, further rates, and each class's own rate (C,), NaN where it has none."""
    accept = class_rates(classes, threshold)  # (C,)
    miss = np.full(len(classes.sizes), np.nan)
    large = np.flatnonzero(classes.sizes >= 2)
    thin = classes.thinned(np.random.default_rng(0))
    miss[large] = 1.0 - positive_scores(thin, large).share_at_least(threshold - SLACK)[0]
    far, missed = float(accept.mean()), float(miss[large].mean())
    rates = {"far": far, "miss": missed}
    if prior is not None:
        right, wrong = prior * (1.0 - missed), (1.0 - prior) * far
        rates["precision"] = right / (right + wrong) if right + wrong > 0 else 1.0
        return 1.0 - rates["precision"], rates, accept
    if others is not None:
        return far, rates, reference_rates(classes, others, threshold)
    return (missed, rates, miss) if risk == "miss" else (far, rates, accept)


def _failures(classes: ClassSet, own: NDArray[np.float64], alpha: float) -> tuple[ClassFailure, ...]:
    above = np.flatnonzero(np.nan_to_num(own) > alpha)
    worst = above[np.argsort(-own[above], kind="stable")].tolist()
    return tuple(ClassFailure(label=classes.names[code], rate=float(own[code])) for code in worst)


def _too_little(units: str, risk: str, alpha: float, delta: float, extreme: NDArray[np.float64]) -> InputError:
    """The refusal; `extreme` is (M, n), the shares of failures at the threshold that has the fewest."""
    smallest = smallest_level(lambda level: MeanTest.of(level, extreme.shape[1], delta).refutes(extreme))
    can = "they certify none" if smallest is None else f"the smallest alpha they can is {smallest}"
    return InputError(f"{units} cannot certify alpha={alpha} for risk={risk!r} at delta={delta}; {can}")


def _too_few_classes(count: int, beta: float, delta: float, part: float) -> InputError:
    smallest = smallest_level(lambda level: allowed_failures(count, level, part) >= 0)
    return InputError(
        f"{count} classes cannot certify beta={beta} for risk='class_far' at delta={delta}, whatever alpha; "
        f"the smallest beta they can is {smallest}"
    )


def _reference_rows(reference: ArrayLike, classes: ClassSet) -> Floats:
    rows = unit_rows(reference)
    if rows.shape[1] != classes.unit.shape[1]:
        raise InputError(
            f"reference has {rows.shape[1]} dimensions and the embeddings have {classes.unit.shape[1]}; use one encoder"
        )
    return rows


def _check_options(
    risk: str,
    unit: str | None,
    beta: float | None,
    prior: float | None,
    reference: ArrayLike | None,
    method: str,
) -> None:
    if risk == "no_answer":
        raise InputError("risk='no_answer' is a risk of queries: use calibrate_no_answer(top_scores, ...)")
    if risk not in _UNITS:
        raise UnknownNameError("risk", risk, [*_UNITS, "no_answer"])
    if method not in ("exact", "bootstrap"):
        raise UnknownNameError("method", method, ["exact", "bootstrap"])
    if unit is not None and unit != _UNITS[risk]:
        raise InputError(f"unit is {unit!r}; the independent units of risk={risk!r} are {_UNITS[risk]!r}")
    for name, value, owner in (
        ("beta", beta, "class_far"),
        ("reference", reference, "class_far"),
        ("prior", prior, "precision"),
    ):
        if value is not None and risk != owner:
            raise InputError(f"{name} belongs to risk={owner!r}; leave it out for risk={risk!r}")
    if risk == "precision" and prior is None:
        raise InputError(
            "risk='precision' needs prior=, the share of the pairs to be judged that truly match: a precision of 95 % "
            "among balanced pairs is far less where one pair in a thousand matches"
        )
    if method == "bootstrap" and risk not in ("far", "miss"):
        raise InputError(f"method='bootstrap' is offered for 'far' and 'miss'; risk is {risk!r}")

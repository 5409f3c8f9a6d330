"""What a threshold promises and rests on, in sentences that a card carries to its reader."""

from __future__ import annotations

_DRIFT = (
    "The promise is for new {what} drawn as the calibration data was. It does not hold under drift: a new domain, "
    "another way of sampling, or a changed encoder."
)
_ONE_OF_MANY = (
    "It holds over the draw of the calibration data, for one threshold calibrated once with alpha fixed beforehand; of "
    "many such promises, a share of delta may be broken."
)


def promise(risk: str, alpha: float, delta: float, beta: float | None, prior: float | None, against: str) -> str:
    """The promise in one sentence; `against` says whose false accepts count for "class_far"."""
    sure = f"With confidence {1 - delta:.4g}, "
    return {
        "far": sure + f"a pair of samples from two different new classes is accepted with a chance below {alpha:.4g}.",
        "miss": sure + f"a pair of samples of one new class is rejected with a chance below {alpha:.4g}.",
        "precision": sure + f"of the accepted pairs at most {alpha:.4g} are wrong, when a share of {prior or 0:.4g} of "
        "the judged pairs truly match.",
        "class_far": sure + f"at least {1 - (beta or 0):.4g} of new classes have an own false-accept rate of at most "
        f"{alpha:.4g} {against}.",
        "no_answer": sure + f"at most {alpha:.4g} of unanswerable queries get any answer.",
    }[risk]


def assumptions(risk: str, method: str, against_reference: bool) -> tuple[str, ...]:
    """What the promise rests on."""
    if method == "bootstrap":
        way = (
            "Approximate: a percentile bootstrap over classes. Nothing is certified; the chance of a broken promise "
            "approaches delta only as the number of classes grows, and is larger for few classes or a small alpha."
        )
        return (way, _population(risk), _DRIFT.format(what="classes"), _ONE_OF_MANY)
    if risk == "no_answer":
        return (
            "Queries (or groups of them) are independent draws; queries that rephrase one another belong in a group.",
            "The corpus is the one that was searched: with more documents, every query's top score grows.",
            _DRIFT.format(what="queries"),
            _ONE_OF_MANY,
        )
    if against_reference:
        way = (
            "Classes are independent draws, each with its samples. A class's own rate is measured on its samples "
            "against the given reference samples, and the promise is about rates measured that way."
        )
        return (way, _DRIFT.format(what="classes"), _ONE_OF_MANY)
    return (
        "Classes are independent draws, each with its samples; pairs that share a class are not taken as independent.",
        _population(risk),
        _DRIFT.format(what="classes"),
        _ONE_OF_MANY,
    )


def _population(risk: str) -> str:
    return {
        "far": "Every pair of classes counts alike, whatever the classes' sizes.",
        "miss": "Every class of two or more samples counts alike, whatever its size.",
        "precision": "Every pair of classes counts alike, every class of two or more samples counts alike, and "
        "matching and other pairs are mixed by the stated prior. Another prior needs another card.",
        "class_far": "A class's own rate is that of its samples, as drawn, against the samples of another class drawn "
        "at random.",
    }[risk]

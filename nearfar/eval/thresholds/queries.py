"""The score from which on a search may answer: calibrated on queries that have no answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.eval.inputs import ArrayLike
from nearfar.eval.thresholds.bounds import MeanTest, allowed_failures, smallest_level
from nearfar.eval.thresholds.card import Metric, ScoreSource, ThresholdCard
from nearfar.eval.thresholds.provenance import check_levels, now, versions
from nearfar.eval.thresholds.units import SLACK
from nearfar.eval.thresholds.wording import assumptions, promise


def calibrate_no_answer(
    top_scores: ArrayLike,
    *,
    alpha: float,
    corpus_size: int,
    delta: float = 0.05,
    groups: Sequence[int] | Sequence[str] | NDArray[np.int64] | None = None,
    metric: Metric = "cosine",
    score_source: ScoreSource = "exact",
    encoder: str | None = None,
    prompts: dict[str, str] | None = None,
) -> ThresholdCard:
    """Calibrate the score below which a search should give no answer.

    The smallest threshold such that, with confidence 1 - `delta`, at most a share `alpha` of unanswerable queries
    finds a document that reaches it. Without groups the bound is the exact binomial, so the smallest alpha is about
    3 / Q at a delta of 0.05; with groups it is a bet on the groups' shares.

    Args:
        top_scores: (Q,), for each query without an answer the score of its best document; larger is better.
        alpha: share of unanswerable queries that may get an answer.
        corpus_size: documents searched. More documents give higher top scores, so the promise is for this number.
        delta: chance that the promise is broken; 0.05 by convention.
        groups: Q labels of what was drawn independently, when queries are not: one label for all wordings of one need.
        metric: of the scores; a cosine's threshold never exceeds 1.
        score_source: "compressed" when the scores come straight from a quantised index.
        encoder: digest of the encoder's fingerprint.
        prompts: what was put before the texts, by role.

    Returns:
        A query card.

    Raises:
        InputError: malformed scores or levels, or too few queries for alpha; the message names the smallest alpha.

    Example:
        >>> card = calibrate_no_answer([0.31, 0.55, 0.42, 0.38] * 25, alpha=0.05, corpus_size=10_000)
        >>> card.kind, card.units, round(card.threshold, 3)
        ('query', 100, 0.55)

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 1934, for the binomial.
    """
    check_levels(alpha, delta)
    if corpus_size < 1:
        raise InputError(f"corpus_size is {corpus_size}; give the number of documents searched, at least 1")
    scores = query_scores(top_scores)
    codes = _group_codes(groups, len(scores))
    distinct = np.unique(scores)[::-1]  # descending
    # Above the strictest candidate nothing that was seen is answered; a cosine cannot go beyond 1.
    candidates = np.concatenate([[_above(distinct[0])], distinct])
    if metric == "cosine":
        candidates = np.unique(np.minimum(candidates, 1.0))[::-1]
    if not _certifies(scores, codes, float(candidates[0]), alpha, delta):
        smallest = smallest_level(lambda level: _certifies(scores, codes, float(candidates[0]), level, delta))
        can = "they certify none" if smallest is None else f"the smallest alpha they can is {smallest}"
        unit = "queries" if codes is None else "groups"
        raise InputError(
            f"{_units(scores, codes)} independent {unit} cannot certify alpha={alpha} at delta={delta}; {can}"
        )
    low, high = 0, len(candidates)
    while high - low > 1:  # candidates[low] is certified
        middle = (low + high) // 2
        low, high = (
            (middle, high) if _certifies(scores, codes, float(candidates[middle]), alpha, delta) else (low, middle)
        )
    # Any threshold above the next lower score answers the same queries; the smallest of them is asked for.
    threshold = float(candidates[low]) if high == len(candidates) else _above(float(candidates[high]))
    threshold = min(threshold, float(candidates[low]))
    share = float(_shares(scores, codes, threshold).mean())
    return ThresholdCard(
        kind="query",
        threshold=threshold,
        risk="no_answer",
        alpha=alpha,
        delta=delta,
        unit="queries" if codes is None else "groups",
        units=_units(scores, codes),
        samples=len(scores),
        estimated_risk=share,
        certified_risk=alpha,
        rates={"no_answer": share},
        promise=promise("no_answer", alpha, delta, None, None, ""),
        assumptions=assumptions("no_answer", "exact", False),
        corpus_size=corpus_size,
        encoder=encoder,
        metric=metric,
        score_source=score_source,
        prompts=prompts or {},
        seed=0,
        created=now(),
        versions=versions(),
    )


def query_scores(values: ArrayLike) -> NDArray[np.float64]:
    """Check top scores and return them as float64 (Q,).

    Raises:
        InputError: empty, not one-dimensional, or not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise InputError(f"top_scores have shape {scores.shape}; give one score per query, and at least one")
    if not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(scores)))
        raise InputError(f"top score {bad} is {scores[bad]}; every query needs a best document with a finite score")
    return scores


def _certifies(
    scores: NDArray[np.float64], codes: NDArray[np.int64] | None, threshold: float, alpha: float, delta: float
) -> bool:
    if codes is None:
        return int(_answered(scores, threshold).sum()) <= allowed_failures(len(scores), alpha, delta)
    return MeanTest.of(alpha, _units(scores, codes), delta).refutes(_shares(scores, codes, threshold)[None])


def _shares(scores: NDArray[np.float64], codes: NDArray[np.int64] | None, threshold: float) -> NDArray[np.float64]:
    """Answered share of each unit, (n,)."""
    answered = _answered(scores, threshold).astype(np.float64)
    return answered if codes is None else np.bincount(codes, answered) / np.bincount(codes)


def _answered(scores: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Scores that reach the threshold, also when they are rounded differently, (Q,)."""
    return np.asarray(scores >= threshold - SLACK * max(1.0, abs(threshold)))


def _units(scores: NDArray[np.float64], codes: NDArray[np.int64] | None) -> int:
    return len(scores) if codes is None else int(codes.max()) + 1


def _above(score: float) -> float:
    """Just above a score, by more than its rounding."""
    return score + 2.0 * SLACK * max(1.0, abs(score))


def _group_codes(groups: object, queries: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    names = np.asarray(groups)
    if names.shape != (queries,):
        raise InputError(f"groups have shape {names.shape} for {queries} queries; give one label per query")
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)

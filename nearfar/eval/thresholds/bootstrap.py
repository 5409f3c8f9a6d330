"""Thresholds by a cluster bootstrap: classes are drawn again with replacement. Approximate, and named so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import Floats
from nearfar.eval.thresholds.class_rates import class_blocks
from nearfar.eval.thresholds.units import SLACK, STEPS, ClassSet, just_above, positive_scores

_DRAWS = 500
_TAIL = 4_000_000


def bootstrap_far(classes: ClassSet, alpha: float, delta: float, rng: np.random.Generator) -> float:
    """The 1 - delta quantile, over drawn sets of classes, of the smallest threshold that keeps the rate below alpha.

    A class drawn k times weighs k, and so do its pairs; pairs of a class with itself never count.
    """
    scores, left, right = _top_pairs(classes, alpha)
    found = np.empty(_DRAWS)
    count = len(classes.sizes)
    for draw in range(_DRAWS):
        weight = rng.multinomial(count, np.full(count, 1.0 / count)).astype(np.float64)  # (C,)
        total = (weight.sum() ** 2 - (weight**2).sum()) / 2.0
        per_sample = weight / classes.sizes
        accepted = np.cumsum(per_sample[left] * per_sample[right])  # (S,), from the strictest threshold on
        first = int(np.searchsorted(accepted, alpha * total, side="right"))  # the score that is one too many
        found[draw] = just_above(float(scores[min(first, len(scores) - 1)]))
    return float(np.quantile(found, 1.0 - delta, method="higher"))


def bootstrap_miss(classes: ClassSet, alpha: float, delta: float, rng: np.random.Generator) -> float:
    """The delta quantile, over drawn sets of classes, of the largest threshold that keeps misses below alpha."""
    among = np.flatnonzero(classes.sizes >= 2)
    pairs = positive_scores(classes, among)
    unit = np.repeat(np.arange(len(among)), pairs.counts)
    order = np.argsort(pairs.scores, kind="stable")
    scores, unit = pairs.scores[order], unit[order]
    found = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        weight = rng.multinomial(len(among), np.full(len(among), 1.0 / len(among))) / pairs.counts  # (T,)
        missed = np.cumsum(weight[unit])
        first = int(np.searchsorted(missed, alpha * len(among), side="right"))
        score = float(scores[min(first, len(scores) - 1)])
        found[draw] = (math.ceil((score - SLACK) * STEPS) - 1) / STEPS
    return float(np.quantile(found, delta, method="lower"))


def _top_pairs(classes: ClassSet, alpha: float) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """The scores of the highest pairs across classes, descending, with the classes of both samples.

    Enough of them that every draw of classes finds its threshold there: about four times the share alpha.
    """
    samples = len(classes.codes)
    wanted = min(_TAIL, math.ceil(4.0 * alpha * samples * (samples - 1) / 2.0) + 1000)
    scores: list[NDArray[Any]] = []
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    held, floor = 0, -np.inf
    for first, _, cosines in class_blocks(classes, classes.unit):
        start = classes.starts[first]
        later = classes.codes[start : start + len(cosines), None] < classes.codes[None, :]
        row, column = np.nonzero(later & (cosines > floor))
        scores.append(cosines[row, column])
        rows.append(classes.codes[start + row])
        columns.append(classes.codes[column])
        held += len(row)
        if held > 2 * wanted:
            keep = np.argpartition(np.concatenate(scores), held - wanted)[held - wanted :]
            scores = [np.concatenate(scores)[keep]]
            rows, columns = [np.concatenate(rows)[keep]], [np.concatenate(columns)[keep]]
            held, floor = wanted, float(scores[0].min())
    flat: NDArray[Any] = np.concatenate(scores)
    order = np.argsort(-flat, kind="stable")[:wanted]
    return flat[order], np.concatenate(rows)[order], np.concatenate(columns)[order]

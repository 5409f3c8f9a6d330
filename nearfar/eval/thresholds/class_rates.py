"""Each class's own false-accept rate: measured at a threshold, and the threshold that keeps it below a level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.eval.inputs import Floats
from nearfar.eval.thresholds.bounds import MeanTest, allowed_failures
from nearfar.eval.thresholds.units import SLACK, STEPS, ClassSet, just_above

_BLOCK_BYTES = 32 << 20
NOWHERE = (STEPS + 1) / STEPS  # above every cosine: no threshold keeps this class's promise


@dataclass(frozen=True)
class TolerancePlan:
    """How to count classes that fail, so that the share of new classes that fail is certified.

    Attributes:
        failures: classes that may fail among those calibrated.
        level: of each class's own test.
    """

    failures: int
    level: float

    @classmethod
    def of(cls, classes: int, beta: float, delta: float) -> TolerancePlan | None:
        """The plan for a share `beta` with confidence 1 - `delta`; None when there are too few classes.

        A class that truly fails goes undetected with a chance of at most `level`. Whatever the dependence between
        the classes (they are measured against one another), the number of undetected ones among those that truly
        fail has a mean of at most ``classes * beta * level``, so by Markov's inequality it exceeds `spare` with a
        chance of at most half of `delta`. The number that truly fail is binomial, as classes are drawn independently;
        it is `failures + spare` or fewer with a chance of at most the other half.
        """
        count = allowed_failures(classes, beta, delta / 2.0)
        if count < 0:
            return None
        # A quarter did best on simulated classes: more spares loosen each class's test and tighten the count.
        spare = round(count / 4)
        return cls(count - spare, min(0.5, delta / 2.0 * (spare + 1) / (classes * beta)))


def class_rates(classes: ClassSet, threshold: float) -> NDArray[np.float64]:
    """Measured false-accept rate of each class, (C,): the mean over the other classes of the accepted share."""
    weight = (1.0 / classes.sizes[classes.codes]).astype(classes.unit.dtype)  # (N,)
    totals = np.zeros(len(classes.sizes))
    for first, last, cosines in class_blocks(classes, classes.unit):
        _leave_out_own(cosines, classes, first, last)
        accepted = (cosines >= threshold - SLACK).astype(weight.dtype) @ weight  # (rows,), summed over the classes
        totals[first:last] = np.add.reduceat(accepted, classes.starts[first:last] - classes.starts[first])
    return np.asarray(totals / classes.sizes / (len(classes.sizes) - 1))


def reference_rates(classes: ClassSet, reference: Floats, threshold: float) -> NDArray[np.float64]:
    """Share of the pairs of each class with the reference samples that are accepted, (C,)."""
    rates = np.zeros(len(classes.sizes))
    for first, last, cosines in class_blocks(classes, reference):
        accepted = (cosines >= threshold - SLACK).mean(axis=1)  # (rows,)
        rates[first:last] = np.add.reduceat(accepted, classes.starts[first:last] - classes.starts[first])
    return rates / classes.sizes


def reference_thresholds(classes: ClassSet, reference: Floats, alpha: float) -> NDArray[np.float64]:
    """The smallest threshold of each class at which at most `alpha` of its reference pairs are accepted, (C,)."""
    found = np.empty(len(classes.sizes))
    for first, last, cosines in class_blocks(classes, reference):
        for code in range(first, last):
            begin = classes.starts[code] - classes.starts[first]
            own = cosines[begin : begin + classes.sizes[code]].ravel()  # (n_c * R,)
            allowed = math.floor(alpha * own.size)
            found[code] = just_above(float(np.partition(own, own.size - 1 - allowed)[own.size - 1 - allowed]))
    return found


def certified_thresholds(classes: ClassSet, alpha: float, level: float) -> NDArray[np.float64]:
    """The smallest threshold of each class at which its own rate is certified to be below `alpha`, (C,).

    Given a class, the accepted shares of its pairs with each other class are independent values, and their mean is
    its own rate. `NOWHERE` stands for classes that no threshold up to a cosine of 1 can certify.
    """
    test = MeanTest.of(alpha, len(classes.sizes) - 1, level)
    found = np.empty(len(classes.sizes))
    for first, last, cosines in class_blocks(classes, classes.unit):
        _leave_out_own(cosines, classes, first, last)
        for code in range(first, last):
            begin = classes.starts[code] - classes.starts[first]
            found[code] = _certified_threshold(cosines[begin : begin + classes.sizes[code]], classes, test)
    return np.asarray(np.minimum(found, NOWHERE))


def certifiable_by_class(classes: ClassSet, plan: TolerancePlan) -> Callable[[float], bool]:
    """Whether, at the strictest threshold, so few classes lack a certificate for an alpha as the plan allows."""
    count = len(classes.sizes)
    # Only classes with near-identical samples in other classes need a look of their own.
    touched = [values for code in range(count) if (values := shares_of_class(classes, code, 1.0)).any()]
    untouched = np.zeros((1, count - 1))

    def certifiable(alpha: float) -> bool:
        test = MeanTest.of(alpha, count - 1, plan.level)
        return test.refutes(untouched) and sum(not test.refutes(values) for values in touched) <= plan.failures

    return certifiable


def shares_of_class(classes: ClassSet, code: int, threshold: float) -> NDArray[np.float64]:
    """Accepted share of the pairs of one class with each other class, (1, C - 1)."""
    rows = slice(classes.starts[code], classes.starts[code] + classes.sizes[code])
    reached = ((classes.unit[rows] @ classes.unit.T) >= threshold - SLACK).mean(axis=0)  # (N,)
    shares = np.bincount(classes.codes, reached) / classes.sizes  # (C,)
    return np.asarray(np.delete(shares, code)[None])


def _certified_threshold(own: Floats, classes: ClassSet, test: MeanTest) -> float:
    """Add the scores from the top, one by one, until the claim is no longer refuted."""
    scores, columns = own.ravel(), own.shape[1]
    total = scores.size
    take = min(total, math.ceil(2.0 * test.mean * total) + 16)
    while True:
        top = np.argpartition(scores, total - take)[total - take :]
        top = top[np.argsort(-scores[top], kind="stable")]  # (take,), descending
        units = classes.codes[top % columns]
        step = 1.0 / (len(own) * classes.sizes[units])
        before = _earlier(units) * step  # share of the unit that is accepted before this score
        gain = test.stakes[:, None] * (test.mean - np.stack([before, before + step])[:, None, :])  # (2, J, take)
        change = np.log1p(np.maximum(gain, -0.999999))
        nothing = (len(classes.sizes) - 1) * np.log1p(test.stakes * test.mean)[:, None]
        logs = nothing + np.cumsum(change[1] - change[0], axis=1)  # (J, take)
        fortune = np.logaddexp.reduce(logs, axis=0) - math.log(len(test.stakes))  # (take,), falling
        needed = math.log(1.0 / test.delta)
        if np.logaddexp.reduce(nothing[:, 0]) - math.log(len(test.stakes)) < needed:
            return NOWHERE
        fails = np.flatnonzero(fortune < needed)
        if len(fails):
            score = float(scores[top[fails[0]]])
            return just_above(score) if np.isfinite(score) else -1.0
        if take == total:
            return -1.0
        take = min(total, 4 * take)


def _earlier(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry occurred before, (T,)."""
    order = np.argsort(units, kind="stable")
    grouped = units[order]
    starts = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
    lengths = np.diff(np.append(starts, len(units)))
    counts = np.empty(len(units), dtype=np.int64)
    counts[order] = np.arange(len(units)) - np.repeat(starts, lengths)
    return counts


def _leave_out_own(cosines: Floats, classes: ClassSet, first: int, last: int) -> None:
    """Set the cosines of each row with its own class to -inf; rows are those of the classes first to last - 1."""
    sizes = classes.sizes[first:last]
    width = np.repeat(sizes, sizes)  # (rows,)
    row = np.repeat(np.arange(len(cosines)), width)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(width) - width, width)
    cosines[row, np.repeat(classes.starts[first:last], sizes)[row] + offset] = -np.inf


def class_blocks(classes: ClassSet, columns: Floats) -> Iterator[tuple[int, int, Floats]]:
    """Cosines of whole classes with all columns: (first class, last class + 1, (rows, N))."""
    rows = max(1, _BLOCK_BYTES // (columns.itemsize * len(columns)))
    bounds = np.append(classes.starts, len(classes.codes))  # (C + 1,)
    first = 0
    while first < len(classes.sizes):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + rows, side="right")) - 1)
        yield first, last, classes.unit[bounds[first] : bounds[last]] @ columns.T
        first = last

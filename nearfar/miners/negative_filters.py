"""Filters of false negatives: https://arxiv.org/abs/2407.15831 (NV-Retriever, de Souza P. Moreira et al., 2024).

A document that scores as high as a query's positive may well answer the query. So what may count as a negative is
bounded by the positive's own score, by the scores of all positives, or by a fixed score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NegativeFilters:
    """Which scores a negative may have; every bound that is given must hold.

    With a query's positive at the score p, a negative may score at most

    - p - ``absolute_margin`` (NV-Retriever's TopK-MarginPos),
    - p - ``relative_margin`` x abs(p), for p > 0 the share 1 - ``relative_margin`` of p (TopK-PercPos, and the
      definition of sentence-transformers, which holds for scores below 0 too),
    - the ``positive_percentile`` of the scores of all positives: of 5 % of the positives at 5,
    - ``max_score`` (TopK-Abs);

    and at least ``min_score``.

    Args:
        absolute_margin: None (off).
        relative_margin: 0.05, the best of the paper's settings (95 %). None for none.
        positive_percentile: in [0, 100]; None (off). Unlike a margin it is one bound for all queries, so a query whose
            own positive scores low keeps its negatives.
        max_score: None (off).
        min_score: None (off).
        positive_quantile: from which of several positives of a query the margins are measured: 0 is the hardest (the
            one with the lowest score, as in sentence-transformers), 1 the easiest, 0.5 the median.

    Raises:
        InputError: a number is not finite or out of its range.

    Example:
        >>> import numpy as np
        >>> filters = NegativeFilters(relative_margin=0.05)
        >>> reference = filters.reference([np.array([0.8, 0.9])])
        >>> [(name, mask.tolist()) for name, mask in filters.rejections(np.array([[0.79, 0.7]]), reference)]
        [('relative_margin', [[True, False]])]
    """

    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    positive_percentile: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    positive_quantile: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name}={value!r} must be a finite number")
        if not 0 <= self.positive_quantile <= 1:
            raise InputError(
                f"positive_quantile={self.positive_quantile!r} must be from 0 (the hardest) to 1 (the easiest positive)"
            )
        if self.positive_percentile is not None and not 0 <= self.positive_percentile <= 100:
            raise InputError(f"positive_percentile={self.positive_percentile!r} must be from 0 to 100")
        if self.max_score is not None and self.min_score is not None and self.max_score < self.min_score:
            raise InputError(f"max_score={self.max_score!r} is below min_score={self.min_score!r}; swap them")

    @property
    def need_positives(self) -> bool:
        """A margin is set, so every query needs a positive."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def reference(self, positive_scores: Sequence[Floats]) -> Floats:
        """(Q,) the score from which each query's margins are measured; infinite without positives.

        Args:
            positive_scores: Q arrays with the scores of each query's positives.
        """
        return np.array([self._reference(scores) for scores in positive_scores])

    def _reference(self, scores: Floats) -> float:
        if len(scores) < 2:  # nearly every query
            return float(scores[0]) if len(scores) else np.inf
        return float(np.quantile(scores, self.positive_quantile))

    def rejections(
        self, scores: Floats, reference: Floats, population: Floats | None = None
    ) -> Iterator[tuple[str, Mask]]:
        """Yield the name of each filter that is set and the (Q, k) mask of what it refuses.

        Args:
            scores: (Q, k).
            reference: (Q,), see `reference`.
            population: scores of the positives of many queries, for ``positive_percentile``.
        """
        bound = reference[:, None]  # (Q, 1)
        if self.absolute_margin is not None:
            yield "absolute_margin", scores > bound - self.absolute_margin
        if self.relative_margin is not None:
            yield "relative_margin", scores > bound - self.relative_margin * np.abs(bound)
        if self.positive_percentile is not None:
            if population is None or not len(population):
                raise InputError("positive_percentile needs the scores of some positives; there are none")
            yield "positive_percentile", scores > np.percentile(population, self.positive_percentile)
        if self.max_score is not None:
            yield "max_score", scores > self.max_score
        if self.min_score is not None:
            yield "min_score", scores < self.min_score

"""Soft top-k: the threshold by bisection in float64, its gradient by the implicit function theorem."""

from __future__ import annotations

from tests.oracles.losses.pairs import log_one_plus_exp, query_terms, scale_of


def oracle(inputs, options, parameters):
    sharpness = options["alpha"] * scale_of(options, default_temperature=0.05)
    values = []
    for positives, negatives in query_terms(inputs, options):
        k = len(positives) if options["k"] == "positives" else options["k"]
        if not positives or len(positives) + len(negatives) <= k:
            values.append(None)
            continue
        scores = [sharpness * s for s in [*(s for s, _ in positives), *negatives]]
        t = _bisect([x.detach() for x in scores], k)
        # With t in place of a constant, one Newton step has the true derivative of the threshold.
        total = sum(_sigmoid(x + t) for x in scores)
        slope = sum(_sigmoid(x + t).detach() * _sigmoid(-x - t).detach() for x in scores)
        threshold = t - (total - total.detach()) / slope
        terms = [grade * log_one_plus_exp(-(sharpness * s + threshold)) for s, grade in positives]
        values.append(sum(terms) / len(terms))
    return values


def _sigmoid(x):
    return 1 / (1 + (-x).exp())


def _bisect(scores, k):
    low, high = -max(scores) - 800, -min(scores) + 800
    for _ in range(200):
        middle = (low + high) / 2
        # Summed as what is missing to whole numbers, so that k near-ones do not swallow the small rest.
        above = sum(_sigmoid(x + middle) for x in scores if x + middle <= 0) - sum(
            _sigmoid(-x - middle) for x in scores if x + middle > 0
        )
        above = above + sum(1 for x in scores if x + middle > 0) - k
        low, high = (low, middle) if above > 0 else (middle, high)
    return (low + high) / 2

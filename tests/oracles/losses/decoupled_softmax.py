"""Decoupled softmax: a positive against the query's negatives, graded, mean over the query's positives."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import log_sum_exp, query_terms, scale_of


def oracle(inputs, options, parameters):
    scale = scale_of(options, default_temperature=0.05)
    values = []
    for positives, negatives in query_terms(inputs, options):
        if not positives:
            values.append(None)
            continue
        terms = [torch.zeros((), dtype=inputs.queries.dtype)]
        for s, grade in positives:
            own = scale * s
            everything = log_sum_exp([own, *(scale * n for n in negatives)])
            terms.append(grade * (everything - own))
        values.append(sum(terms) / len(positives))
    return values

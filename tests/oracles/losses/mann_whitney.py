"""Mann-Whitney: every positive of the batch against every negative of the batch."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import log_one_plus_exp, query_terms, scale_of


def oracle(inputs, options, parameters):
    scale = scale_of(options, default_temperature=0.01)
    terms = query_terms(inputs, options)
    positives = [pair for good, _ in terms for pair in good]
    negatives = [s for _, bad in terms for s in bad]
    total = torch.zeros((), dtype=inputs.queries.dtype)
    for p, grade in positives:
        for n in negatives:
            total = total + grade * log_one_plus_exp(scale * (n - p))
    comparisons = len(positives) * (len(negatives) if options.get("normalise") == "pairs" else 1)
    return total / max(1, comparisons)

"""BiXSE and SigLIP: binary cross-entropy of every pair with its grade."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import log_one_plus_exp, query_terms, scale_of


def oracle(inputs, options, parameters):
    scale = scale_of(options, default_temperature=0.1 if "normalise" not in options else 0.05)
    if "log_scale" in parameters:
        scale = parameters["log_scale"].exp()
    bias = parameters["bias"]
    values, pairs = [], 0
    for positives, negatives in query_terms(inputs, options):
        terms = []
        for s, grade in [*positives, *((s, 0.0) for s in negatives)]:
            logit = scale * s + bias
            terms.append(grade * log_one_plus_exp(-logit) + (1 - grade) * log_one_plus_exp(logit))
        pairs += len(terms)
        values.append(sum(terms) if terms else None)
    if options.get("normalise") != "pairs":
        return values
    return sum([v for v in values if v is not None], start=torch.zeros(())) / max(1, pairs)

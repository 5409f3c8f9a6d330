"""Cross-entropy of a linear classifier."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, log_sum_exp


def oracle(inputs, options, parameters):
    weight, bias = parameters["weight"], parameters["bias"]
    values = []
    for x, label in zip(inputs.embeddings, inputs.labels.tolist(), strict=True):
        logits = [dot(x, w) + b for w, b in zip(weight, bias, strict=True)]
        values.append(log_sum_exp(logits) - logits[label])
    return values

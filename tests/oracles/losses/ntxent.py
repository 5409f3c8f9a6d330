"""NT-Xent: every positive pair against the negatives of its anchor, mean over pairs."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, label_pairs, log_sum_exp, mean, references, units


def oracle(inputs, options, parameters):
    x, y = units(inputs.embeddings), units(references(inputs))
    terms = []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        rivals = [dot(x[i], y[j]) / options["temperature"] for j in negatives]
        for j in positives:
            own = dot(x[i], y[j]) / options["temperature"]
            terms.append(log_sum_exp([own, *rivals]) - own)
    return mean(terms)

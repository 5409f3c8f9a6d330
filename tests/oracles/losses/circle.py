"""Circle loss, per anchor."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, label_pairs, log_one_plus_exp, log_sum_exp, references, units


def oracle(inputs, options, parameters):
    m, gamma = options["m"], options["gamma"]
    x, y = units(inputs.embeddings), units(references(inputs))
    values = []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        if not positives or not negatives:
            values.append(None)
            continue
        pull, push = [], []
        for j in positives:
            s = dot(x[i], y[j])
            pull.append(-gamma * max(1 + m - s.item(), 0.0) * (s - (1 - m)))
        for j in negatives:
            s = dot(x[i], y[j])
            push.append(gamma * max(s.item() + m, 0.0) * (s - m))
        values.append(log_one_plus_exp(log_sum_exp(push) + log_sum_exp(pull)))
    return values

"""Circle loss, per anchor or as one decision of all unordered pairs."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import dot, label_pairs, log_one_plus_exp, log_sum_exp, references, units


def oracle(inputs, options, parameters):
    m, gamma = options["m"], options["gamma"]
    x, y = units(inputs.embeddings), units(references(inputs))
    values = []
    if options["grouping"] == "all_pairs":
        return _all_pairs(inputs, x, y, m, gamma)
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        if not positives or not negatives:
            values.append(None)
            continue
        pull = [_pull(dot(x[i], y[j]), m, gamma) for j in positives]
        push = [_push(dot(x[i], y[j]), m, gamma) for j in negatives]
        values.append(log_one_plus_exp(log_sum_exp(push) + log_sum_exp(pull)))
    return values


def _all_pairs(inputs, x, y, m, gamma):
    is_self = inputs.ref_emb is None or inputs.ref_emb is inputs.embeddings
    sides = []
    for columns_of in label_pairs(inputs):
        pairs = {(i, j) for i, columns in enumerate(columns_of) for j in columns}
        sides.append(sorted({(min(pair), max(pair)) for pair in pairs} if is_self else pairs))
    positives, negatives = sides
    if not positives or not negatives:
        return torch.zeros(())
    pull = [_pull(dot(x[i], y[j]), m, gamma) for i, j in positives]
    push = [_push(dot(x[i], y[j]), m, gamma) for i, j in negatives]
    return log_one_plus_exp(log_sum_exp(push) + log_sum_exp(pull))


def _pull(s, m, gamma):
    return -gamma * max(1 + m - s.item(), 0.0) * (s - (1 - m))


def _push(s, m, gamma):
    return gamma * max(s.item() + m, 0.0) * (s - m)

"""Threshold-Consistent Margin: two means over the active pairs of the whole batch."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, label_pairs, mean, references, units


def oracle(inputs, options, parameters):
    x, y = units(inputs.embeddings), units(references(inputs))
    weak, strong = [], []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        for s in (dot(x[i], y[j]) for j in positives):
            if s <= options["margin_plus"]:
                weak.append(options["margin_plus"] - s)
        for s in (dot(x[i], y[j]) for j in negatives):
            if s >= options["margin_minus"]:
                strong.append(s - options["margin_minus"])
    return options["lambda_plus"] * mean(weak) + options["lambda_minus"] * mean(strong)

"""Multi-Similarity loss, with or without its mining."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, label_pairs, log_one_plus_sum_exp, references, units


def oracle(inputs, options, parameters):
    alpha, beta, base = options["alpha"], options["beta"], options["base"]
    x, y = units(inputs.embeddings), units(references(inputs))
    values = []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        pull = [dot(x[i], y[j]) for j in positives]
        push = [dot(x[i], y[j]) for j in negatives]
        margin = options["mining_margin"]
        if margin is not None:
            hardest_negative = max((s.item() for s in push), default=float("-inf"))
            hardest_positive = min((s.item() for s in pull), default=float("inf"))
            pull = [s for s in pull if s.item() - margin < hardest_negative]
            push = [s for s in push if s.item() + margin > hardest_positive]
        near = log_one_plus_sum_exp([-alpha * (s - base) for s in pull]) / alpha
        far = log_one_plus_sum_exp([beta * (s - base) for s in push]) / beta
        values.append(near + far)
    return values

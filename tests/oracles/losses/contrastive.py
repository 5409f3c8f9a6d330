"""Contrastive loss: two means, each over the pairs of its side that have a loss."""

from __future__ import annotations

from tests.oracles.losses.pairs import label_pairs, mean, references, units
from tests.oracles.losses.triplet_margin import distance


def oracle(inputs, options, parameters):
    x, y = units(inputs.embeddings), units(references(inputs))
    far, near = [], []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        far += [distance(x[i], y[j]) - options["pos_margin"] for j in positives]
        near += [options["neg_margin"] - distance(x[i], y[j]) for j in negatives]
    return mean([term for term in far if term > 0]) + mean([term for term in near if term > 0])

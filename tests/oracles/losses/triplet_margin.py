"""Triplet loss: every triplet of a positive and a negative pair with the same anchor, or those that were named."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import label_pairs, log_one_plus_exp, mean, references, units


def oracle(inputs, options, parameters):
    x, y = units(inputs.embeddings), units(references(inputs))
    margin, mining = options["margin"], options["mining"]
    terms = []
    for a, p, n in _triplets(inputs, x, y, mining):
        own, near = distance(x[a], y[p]), distance(x[a], y[n])
        if mining == "semihard" and not own.item() < near.item() <= own.item() + margin:
            continue
        if options["swap"]:
            between = distance(y[p], y[n])
            near = between if between < near - 1e-12 else near
        violation = own - near + margin
        if options["smooth_loss"]:
            terms.append(log_one_plus_exp(violation))
        elif violation > 0:
            terms.append(violation)
    return mean(terms)


def _triplets(inputs, x, y, mining):
    if inputs.indices_tuple is not None and len(inputs.indices_tuple) == 3 and mining != "hard":
        return sorted(set(zip(*(part.tolist() for part in inputs.indices_tuple), strict=True)))
    found = []
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        if mining == "hard" and positives and negatives:
            positives = [max(positives, key=lambda j, i=i: distance(x[i], y[j]).item())]
            negatives = [min(negatives, key=lambda j, i=i: distance(x[i], y[j]).item())]
        found += [(i, p, n) for p in positives for n in negatives]
    return found


def distance(u, v):
    """Euclidean, without gradient where it is 0."""
    square = ((u - v) ** 2).sum()
    return square.sqrt() if square > 1e-15 else torch.zeros((), dtype=u.dtype)

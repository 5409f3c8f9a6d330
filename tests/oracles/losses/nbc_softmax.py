"""NBC-Softmax: repulsion of the raw class means of the batch, beside a linear softmax."""

from __future__ import annotations

from tests.oracles.losses import linear_softmax
from tests.oracles.losses.pairs import dot, mean, units


def oracle(inputs, options, parameters):
    labels = inputs.labels.tolist()
    means = []
    for label in sorted(set(labels)):
        members = [x for x, other in zip(inputs.embeddings, labels, strict=True) if other == label]
        means.append(sum(members) / len(members))
    directions = [units(m[None])[0] for m in means]
    terms = []
    for i, own in enumerate(directions):
        total = 1.0
        for j, other in enumerate(directions):
            if i != j:
                total = total + (options["tau"] * dot(own, other)).exp()
        terms.append(total.log() if i != 0 or len(directions) > 1 else own.sum() * 0)
    block = mean(terms)
    if options["normalise_by"] == "num_classes":
        block = block / options["num_classes"]
    own = {name.removeprefix("base."): value for name, value in parameters.items()}
    base = mean(linear_softmax.oracle(inputs, options, own))
    return (1 - options["weight"]) * base + options["weight"] * block

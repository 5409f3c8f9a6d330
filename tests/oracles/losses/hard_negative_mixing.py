"""MoCHi: every synthetic negative is made, and the loss is that of a batch in which its anchor is given it."""

from __future__ import annotations

import numpy as np
import torch

from tests.losses.inputs import LabelInputs
from tests.oracles.losses.pairs import dot, label_pairs, references, units


def oracle(case, inputs, options, parameters, *, hardest, mixtures, query_mixtures, seed):
    """What ``case.oracle`` says of the batch with its synthetic negatives, at the first call."""
    positives, negatives = label_pairs(inputs)
    vectors, owners = synthetic(inputs, negatives, hardest, mixtures, query_mixtures, seed)
    everything = torch.cat([references(inputs), *(vector[None] for vector in vectors)])
    count = len(references(inputs))
    pull = [(i, j) for i, columns in enumerate(positives) for j in columns]
    push = [(i, j) for i, columns in enumerate(negatives) for j in columns]
    push += [(i, count + place) for place, i in enumerate(owners)]
    pairs = tuple(torch.tensor([pair[k] for pair in side], dtype=torch.long) for side in (pull, push) for k in (0, 1))
    return case.oracle(LabelInputs(inputs.embeddings, None, pairs, everything), options, parameters)


def synthetic(inputs, negatives, hardest, mixtures, query_mixtures, seed):
    """The vectors, and the anchor of each."""
    x, y = units(inputs.embeddings), units(references(inputs))
    generator = np.random.default_rng((seed, 0, 0))
    between, towards = generator.random((len(x), mixtures, 3)), generator.random((len(x), query_mixtures, 2))
    made, owners = [], []
    for i, columns in enumerate(negatives):
        pool = [y[j] for j in sorted(columns, key=lambda j, i=i: -dot(x[i], y[j]).item())[:hardest]]
        own = []
        if len(pool) > 1:
            for first, second, ratio in between[i].tolist():
                a = int(first * len(pool))
                others = pool[a + 1 :] + pool[:a]
                own.append(ratio * pool[a] + (1 - ratio) * others[int(second * len(others))])
        if pool:
            for spot, share in towards[i].tolist():
                own.append(share / 2 * x[i] + (1 - share / 2) * pool[int(spot * len(pool))])
        made += units(own)
        owners += [i] * len(own)
    return made, owners

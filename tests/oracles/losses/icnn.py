"""ICNN: minus the log of the inter- and intra-class nearest-neighbour score."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import distance

_EPSILON = 1e-7


def oracle(inputs, options, parameters):
    origins, targets, is_self = _sets(inputs, options)
    drop = is_self if options["drop_nearest"] is None else options["drop_nearest"]
    if not origins or len(targets) <= drop + 1:
        return torch.zeros(())
    k, full = options["k"], options["k"] + 2 < len(targets)
    if not full:
        k = max(1, len(targets) - 2)
    searched = options["neighbours"] or k + 1

    neighbours = []
    for i, (x, label) in enumerate(origins):
        found = [
            (distance(x, y, 1e-6), label == other)
            for j, (y, other) in enumerate(targets)
            if not (is_self and drop and i == j)
        ]
        found.sort(key=lambda pair: pair[0].item())
        neighbours.append(found[int(drop and not is_self) :][:searched])
    k = min(k, len(neighbours[0]))
    gamma = sum(same for found in neighbours for _, same in found[:k]) / (k * len(origins)) if full else 1.0
    score = ((_intra(neighbours, k) + _inter(neighbours, k)) / 2 + gamma) / 2
    return -score.log()


def _sets(inputs, options):
    batch = list(zip(inputs.embeddings, inputs.labels.tolist(), strict=True))
    if inputs.ref_emb is not None and inputs.ref_emb is not inputs.embeddings:
        return batch, list(zip(inputs.ref_emb, inputs.ref_labels.tolist(), strict=True)), False
    if options["split"] == "self":
        return batch, batch, True
    support, queries = [], []
    for label in sorted(set(inputs.labels.tolist())):
        members = [pair for pair in batch if pair[1] == label]
        if len(members) > 1:
            half = -(-len(members) // 2)
            support += members[:half]
            queries += members[half:]
    return queries, support, False


def _intra(neighbours, k):
    total, number = 0.0, 0
    for found in neighbours:
        others = [v for v, same in found if not same]
        nearest_other = min(others, key=lambda v: v.item()) if others else torch.tensor(float("inf"))
        relative = [v / (nearest_other + _EPSILON) for v, _ in found[:k]]
        peak = max(relative, key=lambda u: u.item())
        divisor = peak if peak > 1 else 1.0
        mates = [u / divisor for u, (_, same) in zip(relative, found, strict=False) if same]
        if mates:
            total, number = total + sum(mates) / (len(mates) + _EPSILON), number + 1
    return 1 - total / (number + _EPSILON) if number else torch.ones((), dtype=neighbours[0][0][0].dtype)


def _inter(neighbours, k):
    others = [[v for v, same in found[:k] if not same] for found in neighbours]
    everything = [v for row in others for v in row]
    if not everything:
        return 1.0
    largest = max(everything, key=lambda v: v.item()) + _EPSILON
    rows = [sum(row) / largest / (len(row) + _EPSILON) for row in others if row]
    return sum(rows) / (len(rows) + _EPSILON)

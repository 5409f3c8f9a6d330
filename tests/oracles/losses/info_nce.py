"""InfoNCE: a positive against all the query's documents, graded, mean over its positives; and the same by column."""

from __future__ import annotations

import torch

from tests.oracles.losses.pairs import document_pairs, dot, log_sum_exp, query_terms, scale_of, units


def oracle(inputs, options, parameters):
    scale = scale_of(options, default_temperature=0.05)
    rows = [_cross_entropy(scale, good, bad) for good, bad in query_terms(inputs, options)]
    if not options.get("symmetric"):
        return rows
    columns = [_cross_entropy(scale, good, bad) for good, bad in _document_terms(inputs, options)]
    sides = []
    for values in (rows, columns):
        counted = [value for value in values if value is not None]
        sides.append(sum(counted) / len(counted) if counted else torch.zeros(()))
    return sum(sides) / 2


def _document_terms(inputs, options):
    queries, documents = units(inputs.queries), units(inputs.documents)
    positives, negatives = document_pairs(inputs)
    margin = options.get("false_negative_margin")
    found = [([], []) for _ in documents]
    for i, query in enumerate(queries):
        best = max((dot(query, documents[j]).item() for j in positives[i]), default=None)
        for j, grade in positives[i].items():
            found[j][0].append((dot(query, documents[j]), grade))
        for j in negatives[i]:
            s = dot(query, documents[j])
            if margin is None or best is None or s.item() <= best - margin:
                found[j][1].append(s)
    return found


def _cross_entropy(scale, positives, negatives):
    if not positives:
        return None
    everything = log_sum_exp([scale * s for s in [*(s for s, _ in positives), *negatives]])
    return sum(grade * (everything - scale * s) for s, grade in positives) / len(positives)

"""Proto-Triplet: queries against the means of their own and of other classes."""

from __future__ import annotations

from tests.oracles.losses.pairs import distance


def oracle(inputs, options, parameters):
    x, labels = inputs.embeddings, inputs.labels.tolist()
    is_self = inputs.ref_emb is None or inputs.ref_emb is x
    values = []
    for i, label in enumerate(labels):
        if is_self and options["split"] == "leave_one_out":
            support = [(x[j], labels[j]) for j in range(len(labels)) if j != i]
        elif is_self:
            if not _is_query(labels, i):
                values.append(None)
                continue
            support = [(x[j], labels[j]) for j in range(len(labels)) if not _is_query(labels, j)]
        else:
            support = list(zip(inputs.ref_emb, inputs.ref_labels.tolist(), strict=True))
        prototypes = {}
        for c in {other for _, other in support}:
            members = [point for point, other in support if other == c]
            prototypes[c] = sum(members) / len(members)
        others = [distance(x[i], point, 1e-6) for c, point in prototypes.items() if c != label]
        if label not in prototypes or not others:
            values.append(None)
            continue
        nearest = min(others, key=lambda d: d.item())
        values.append((distance(x[i], prototypes[label], 1e-6) - nearest + options["margin"]).clamp(min=0))
    return values


def _is_query(labels, i):
    """In the second half of its class, the middle one left out."""
    members = [j for j, label in enumerate(labels) if label == labels[i]]
    return members.index(i) >= (len(members) + 1) // 2

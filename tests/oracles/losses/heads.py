"""What the oracles of margin heads share: cosines with every class, and the cross-entropy of one sample."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, log_sum_exp, units


def cosines(inputs, weight, sub_centers: int = 1):
    """Per sample: the cosine with every class (its nearest centre)."""
    classes = units(weight)
    rows = []
    for x in units(inputs.embeddings):
        each = [dot(x, w) for w in classes]
        groups = [each[start : start + sub_centers] for start in range(0, len(each), sub_centers)]
        rows.append([max(group, key=lambda s: s.item()) for group in groups])
    return rows


def cross_entropies(inputs, rows, own_logit, other_logit):
    """``own_logit(cosine, sample)`` against ``other_logit(cosine)`` of all other classes; None without a class."""
    values = []
    for i, (row, label) in enumerate(zip(rows, inputs.labels.tolist(), strict=True)):
        if label < 0:
            values.append(None)
            continue
        logits = [own_logit(s, i) if c == int(label) else other_logit(s) for c, s in enumerate(row)]
        values.append(log_sum_exp(logits) - logits[int(label)])
    return values

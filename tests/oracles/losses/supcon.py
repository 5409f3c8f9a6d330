"""SupCon: a positive against everything the anchor is compared with."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, label_pairs, log_sum_exp, mean, references, units


def oracle(inputs, options, parameters):
    x, y = units(inputs.embeddings), units(references(inputs))
    positives_of, negatives_of = label_pairs(inputs)
    any_negative = any(negatives_of)
    values = []
    for i, (positives, negatives) in enumerate(zip(positives_of, negatives_of, strict=True)):
        everything = sorted({*positives, *negatives})
        if not positives or len(everything) < 2 or not any_negative:
            values.append(None)
            continue
        logits = {j: dot(x[i], y[j]) / options["temperature"] for j in everything}
        total = log_sum_exp(list(logits.values()))
        values.append(mean([total - logits[j] for j in positives]))
    return values

"""ElasticFace with given margins, one per sample; without them all are the mean margin, as with ``sigma=0``."""

from __future__ import annotations

import torch

from tests.oracles.losses.heads import cosines, cross_entropies


def oracle(inputs, options, parameters, margins=None):
    scale, arc = options["scale"], options["variant"] == "arc"
    mean = options["margin"] if options["margin"] is not None else (0.5 if arc else 0.35)
    rows = cosines(inputs, parameters["weight"])
    margins = [mean] * len(rows) if margins is None else list(margins)
    if options["plus"]:
        labels = inputs.labels.tolist()
        known = [i for i, label in enumerate(labels) if label >= 0]
        nearest_first = sorted(known, key=lambda i: -rows[i][int(labels[i])].item())
        for i, margin in zip(nearest_first, sorted(margins[i] for i in known), strict=True):
            margins[i] = margin

    def own(s, i):
        return scale * (torch.cos(torch.arccos(s) + margins[i]) if arc else s - margins[i])

    return cross_entropies(inputs, rows, own, lambda s: scale * s)

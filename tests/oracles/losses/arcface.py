"""ArcFace with one or several centres per class; the margin is in degrees."""

from __future__ import annotations

import math

import torch

from tests.oracles.losses.heads import cosines, cross_entropies


def oracle(inputs, options, parameters):
    scale, margin = options["scale"], math.radians(options["margin"])

    def own(s, _):
        angle = torch.arccos(s)
        moved = torch.cos(angle + margin) if angle.item() <= math.pi - margin else s - margin * math.sin(margin)
        return scale * moved

    rows = cosines(inputs, parameters["weight"], options.get("sub_centers", 1))
    return cross_entropies(inputs, rows, own, lambda s: scale * s)

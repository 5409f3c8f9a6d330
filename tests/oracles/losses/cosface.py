"""CosFace."""

from __future__ import annotations

from tests.oracles.losses.heads import cosines, cross_entropies


def oracle(inputs, options, parameters):
    scale, margin = options["scale"], options["margin"]
    rows = cosines(inputs, parameters["weight"])
    return cross_entropies(inputs, rows, lambda s, _: scale * (s - margin), lambda s: scale * s)

"""Softmax over cosines, with a fixed or a learned scale."""

from __future__ import annotations

from tests.oracles.losses.heads import cosines, cross_entropies


def oracle(inputs, options, parameters):
    scale = parameters["log_scale"].exp() if options["learned_scale"] else 1 / options["temperature"]
    rows = cosines(inputs, parameters["weight"])
    return cross_entropies(inputs, rows, lambda s, _: scale * s, lambda s: scale * s)

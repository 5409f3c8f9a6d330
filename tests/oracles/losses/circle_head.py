"""Circle loss at class level."""

from __future__ import annotations

from tests.oracles.losses.heads import cosines, cross_entropies


def oracle(inputs, options, parameters):
    m, gamma = options["m"], options["gamma"]
    return cross_entropies(
        inputs,
        cosines(inputs, parameters["weight"]),
        lambda s, _: gamma * max(1 + m - s.item(), 0.0) * (s - (1 - m)),
        lambda s: gamma * max(s.item() + m, 0.0) * (s - m),
    )

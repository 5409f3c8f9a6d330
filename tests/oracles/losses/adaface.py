"""AdaFace from a given state of the moving mean and deviation."""

from __future__ import annotations

import math
import statistics

import torch

from tests.oracles.losses.heads import cosines, cross_entropies

EPSILON = 1e-3


def moved_state(inputs, ema, mean=20.0, std=100.0):
    """The moving mean and deviation after this batch."""
    lengths = _lengths(inputs)
    known = [n for n, label in zip(lengths, inputs.labels.tolist(), strict=True) if label >= 0]
    if known:
        mean = ema * statistics.mean(known) + (1 - ema) * mean
    if len(known) > 1:
        std = ema * statistics.stdev(known) + (1 - ema) * std
    return mean, std


def oracle(inputs, options, parameters, state=(20.0, 100.0)):
    scale, margin = options["scale"], options["margin"]
    mean, std = moved_state(inputs, options["ema"], *state)
    lengths = _lengths(inputs)

    def own(s, i):
        quality = min(max(options["h"] * (lengths[i] - mean) / (std + EPSILON), -1.0), 1.0)
        angle = torch.arccos(s.clamp(-1 + EPSILON, 1 - EPSILON)) - margin * quality
        return scale * (torch.cos(angle.clamp(EPSILON, math.pi - EPSILON)) - margin * (1 + quality))

    return cross_entropies(inputs, cosines(inputs, parameters["weight"]), own, lambda s: scale * s)


def _lengths(inputs) -> list[float]:
    return [min(max(math.sqrt(sum(v * v for v in row)), 0.001), 100.0) for row in inputs.embeddings.tolist()]

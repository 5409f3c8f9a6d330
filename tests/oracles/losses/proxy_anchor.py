"""Proxy-Anchor: each class proxy against the samples of the batch."""

from __future__ import annotations

from tests.oracles.losses.pairs import dot, log_one_plus_sum_exp, mean, units


def oracle(inputs, options, parameters):
    alpha, margin = options["alpha"], options["margin"]
    x, proxies = units(inputs.embeddings), units(parameters["proxies"])
    labels = inputs.labels.tolist()
    own, other = [], []
    for c, proxy in enumerate(proxies):
        pull = [-alpha * (dot(x[i], proxy) - margin) for i, label in enumerate(labels) if label == c]
        push = [alpha * (dot(x[i], proxy) + margin) for i, label in enumerate(labels) if label != c]
        if pull:
            own.append(log_one_plus_sum_exp(pull))
        other.append(log_one_plus_sum_exp(push))
    return mean(own) + mean(other)

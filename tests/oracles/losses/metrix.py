"""Metrix: every mixture is made, and each pair loss written out for examples that are positive in part."""

from __future__ import annotations

import math

import torch

from tests.oracles.losses.pairs import (
    dot,
    label_pairs,
    log_one_plus_exp,
    log_one_plus_sum_exp,
    log_sum_exp,
    mean,
    references,
    units,
)
from tests.oracles.losses.triplet_margin import distance


def oracle(name, inputs, options, parameters, ratio, kind):
    """The mixed part alone, from all mixtures: a value per anchor (None where it does not count), or a scalar."""
    return LOSSES[name](anchors_of(inputs, parameters), inputs, options, ratio, kind)


def anchors_of(inputs, parameters):
    """Per anchor: its vector, its positives and its negatives."""
    if "proxies" in parameters:
        x, labels = units(inputs.embeddings), inputs.labels.tolist()
        for c, proxy in enumerate(units(parameters["proxies"])):
            own = [x[i] for i, label in enumerate(labels) if label == c]
            if own:
                yield proxy, own, [x[i] for i, label in enumerate(labels) if label != c]
        return
    x, y = units(inputs.embeddings), units(references(inputs))
    for i, (positives, negatives) in enumerate(zip(*label_pairs(inputs), strict=True)):
        yield x[i], [y[j] for j in positives], [y[j] for j in negatives]


def mixtures(anchor, positives, negatives, ratio, kind):
    """The vectors, of unit length."""
    firsts = positives if kind == "positive-negative" else [anchor]
    return units([ratio * first + (1 - ratio) * other for first in firsts for other in negatives])


def multi_similarity(anchors, inputs, options, ratio, kind):
    alpha, beta, base = options["alpha"], options["beta"], options["base"]
    values = []
    for a, positives, negatives in anchors:
        s = [dot(a, v) - base for v in mixtures(a, positives, negatives, ratio, kind)]
        pull = log_one_plus_sum_exp([math.log(ratio) - alpha * each for each in s]) / alpha
        push = log_one_plus_sum_exp([math.log(1 - ratio) + beta * each for each in s]) / beta
        values.append(pull + push)
    return values


def circle(anchors, inputs, options, ratio, kind):
    m, gamma = options["m"], options["gamma"]
    values = []
    for a, positives, negatives in anchors:
        s = [dot(a, v) for v in mixtures(a, positives, negatives, ratio, kind)]
        pull = [-gamma * max(1 + m - each.item(), 0.0) * (each - (1 - m)) + math.log(ratio) for each in s]
        push = [gamma * max(each.item() + m, 0.0) * (each - m) + math.log(1 - ratio) for each in s]
        values.append(log_one_plus_exp(log_sum_exp(push) + log_sum_exp(pull)) if s else None)
    return values


def contrastive(anchors, inputs, options, ratio, kind):
    far, near = [], []
    for a, positives, negatives in anchors:
        for v in mixtures(a, positives, negatives, ratio, kind):
            far.append(ratio * (distance(a, v) - options["pos_margin"]))
            near.append((1 - ratio) * (options["neg_margin"] - distance(a, v)))
    return mean([term for term in far if term > 0]) + mean([term for term in near if term > 0])


def threshold_consistent_margin(anchors, inputs, options, ratio, kind):
    weak, strong = [], []
    for a, positives, negatives in anchors:
        for s in (dot(a, v) for v in mixtures(a, positives, negatives, ratio, kind)):
            if s <= options["margin_plus"]:
                weak.append(ratio * (options["margin_plus"] - s))
            if s >= options["margin_minus"]:
                strong.append((1 - ratio) * (s - options["margin_minus"]))
    return options["lambda_plus"] * mean(weak) + options["lambda_minus"] * mean(strong)


def proxy_anchor(anchors, inputs, options, ratio, kind):
    alpha, margin = options["alpha"], options["margin"]
    own, other = [], []
    for a, positives, negatives in anchors:
        s = [dot(a, v) for v in mixtures(a, positives, negatives, ratio, kind)]
        own.append(log_one_plus_sum_exp([math.log(ratio) - alpha * (each - margin) for each in s]))
        other.append(log_one_plus_sum_exp([math.log(1 - ratio) + alpha * (each + margin) for each in s]))
    return mean(own) + sum(other, torch.zeros(())) / options["num_classes"]


LOSSES = {
    "circle": circle,
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
    "proxy-anchor": proxy_anchor,
    "threshold-consistent-margin": threshold_consistent_margin,
}

"""One entry per loss. Every contract test runs over this table, by what the loss declares in its capabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.losses import list_losses
from nearfar.losses.contract import Capabilities, Loss
from tests.losses.inputs import CLASSES, DIM, Inputs, scenarios_for
from tests.oracles.losses import (
    adaface,
    arcface,
    circle,
    circle_head,
    contrastive,
    cosface,
    decoupled_softmax,
    elasticface,
    icnn,
    info_nce,
    linear_softmax,
    mann_whitney,
    multi_similarity,
    nbc_softmax,
    normalized_softmax,
    ntxent,
    pairwise_sigmoid,
    proto_triplet,
    proxy_anchor,
    soft_top_k,
    supcon,
    threshold_consistent_margin,
    triplet_margin,
)

ENTRIES = {entry.name: entry for entry in list_losses()}


@dataclass(frozen=True)
class Case:
    """A loss and the naive loop it must equal.

    Args:
        name: as in the registry.
        oracle: ``oracle(inputs, options, parameters)``; see ``tests.oracles.losses``.
        options: for the constructor, one dictionary per variant; the first is what most tests use. ``num_classes`` and
            ``embedding_size`` are filled in where the constructor requires them.
        true_gradient: False where the paper holds a factor constant, so that finite differences say something else.
    """

    name: str
    oracle: Callable[[Inputs, dict[str, Any], dict[str, Tensor]], Any]
    options: tuple[dict[str, Any], ...] = field(default=({},))
    true_gradient: bool = True

    @property
    def capabilities(self) -> Capabilities:
        return ENTRIES[self.name].loss.capabilities

    @cached_property
    def has_classes(self) -> bool:
        """Labels are row numbers of a table of class weights."""
        return "num_classes" in ENTRIES[self.name].options

    def full_options(self, variant: int = 0, dim: int = DIM) -> dict[str, Any]:
        defaults = ENTRIES[self.name].options
        sizes = {"num_classes": CLASSES, "embedding_size": dim}
        required = {name: sizes[name] for name, default in defaults.items() if default == "required"}
        return {**defaults, **required, **self.options[variant]}

    def build(self, variant: int = 0, *, dim: int = DIM, dtype: torch.dtype = torch.float64, **changes: Any) -> Loss:
        """A new loss; equal parameters every time."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            return ENTRIES[self.name].loss(**{**self.full_options(variant, dim), **changes}).to(dtype)


CASES = [
    # Contract tests call a loss more than once, so its moving values stay and its margins do not vary.
    Case(
        "adaface",
        adaface.oracle,
        ({"ema": 0.0}, {"ema": 0.0, "h": 30.0, "scale": 8}, {"ema": 0.0, "h": 3.0, "margin": 0.9}),
        true_gradient=False,
    ),
    Case("arcface", arcface.oracle, ({}, {"margin": 120, "scale": 8}, {"margin": 0})),
    Case("circle-head", circle_head.oracle, ({}, {"m": 0.4, "gamma": 8}), true_gradient=False),
    Case("cosface", cosface.oracle, ({}, {"margin": 1.2, "scale": 8})),
    Case(
        "elasticface",
        elasticface.oracle,
        ({"sigma": 0.0}, {"sigma": 0.0, "margin": 1.5, "scale": 8}, {"sigma": 0.0, "variant": "cos", "plus": True}),
    ),
    Case("normalized-softmax", normalized_softmax.oracle, ({}, {"temperature": 0.3, "learned_scale": True})),
    Case("sub-center-arcface", arcface.oracle, ({}, {"margin": 100, "scale": 8, "sub_centers": 2})),
    Case(
        "circle",
        circle.oracle,
        ({}, {"m": 0.25, "gamma": 2}, {"gamma": 256}, {"grouping": "all_pairs"}),
        true_gradient=False,
    ),
    Case("contrastive", contrastive.oracle, ({}, {"pos_margin": 0.6, "neg_margin": 1.3})),
    Case(
        "decoupled-softmax",
        decoupled_softmax.oracle,
        ({}, {"temperature": 1.0}, {"scale": 100}, {"false_negative_margin": 0.1}, {"false_negative_margin": -0.2}),
    ),
    Case(
        "icnn",
        icnn.oracle,
        (
            {},
            {"k": 2, "neighbours": 6},
            {"k": 2, "split": "half"},
            {"k": 3, "drop_nearest": True},
            {"drop_nearest": False},
        ),
    ),
    Case("linear-softmax", linear_softmax.oracle),
    Case(
        "multi-similarity",
        multi_similarity.oracle,
        ({}, {"mining_margin": 0.1}, {"alpha": 1, "beta": 40, "base": 0.0}, {"mining_margin": 0.0, "alpha": 3.5}),
    ),
    Case("nbc-softmax", nbc_softmax.oracle, ({}, {"weight": 1.0, "normalise_by": "none"}, {"tau": 3.0, "weight": 0.3})),
    Case("ntxent", ntxent.oracle, ({}, {"temperature": 1.0}, {"temperature": 0.01})),
    Case("proto-triplet", proto_triplet.oracle, ({}, {"split": "half"}, {"margin": 2.0})),
    Case("proxy-anchor", proxy_anchor.oracle, ({}, {"margin": 0.3, "alpha": 4.0})),
    Case("supcon", supcon.oracle, ({}, {"temperature": 1.0}, {"temperature": 0.01})),
    Case(
        "triplet-margin",
        triplet_margin.oracle,
        (
            {},
            {"margin": 0.4, "swap": True},
            {"smooth_loss": True},
            {"smooth_loss": True, "swap": True},
            {"margin": 0.3, "mining": "semihard"},
            {"mining": "semihard", "smooth_loss": True, "margin": 0.2},
            {"margin": 0.3, "mining": "hard"},
            {"margin": 0.3, "mining": "hard", "swap": True},
        ),
    ),
    Case(
        "threshold-consistent-margin",
        threshold_consistent_margin.oracle,
        ({}, {"margin_plus": 0.3, "margin_minus": -0.2, "lambda_plus": 2.0, "lambda_minus": 0.5}),
    ),
    Case(
        "bixse",
        pairwise_sigmoid.oracle,
        (
            {"bias": -3.0},
            {"bias": -3.0, "normalise": "pairs", "learn_scale": True},
            {"bias": 0.5, "temperature": 0.2, "false_negative_margin": 0.1},
        ),
    ),
    Case(
        "info-nce",
        info_nce.oracle,
        (
            {},
            {"symmetric": True},
            {"symmetric": True, "scale": 100},
            {"symmetric": True, "false_negative_margin": 0.1},
            {"temperature": 1.0, "false_negative_margin": -0.2},
        ),
    ),
    Case("siglip", pairwise_sigmoid.oracle, ({}, {"scale": 3, "bias": -2.71}, {"false_negative_margin": 0.1})),
    Case(
        "soft-top-k",
        soft_top_k.oracle,
        (
            {"k": 2},
            {},
            {"k": "positives", "temperature": 1.0},
            {"k": 1, "alpha": 0.5, "false_negative_margin": 0.1},
        ),
    ),
    Case(
        "mann-whitney",
        mann_whitney.oracle,
        (
            {"temperature": 0.1},
            {"normalise": "positives"},
            {"temperature": 1.0, "false_negative_margin": 0.1},
        ),
    ),
]
BY_NAME = {case.name: case for case in CASES}


def each(cases=CASES):
    """Parametrise over cases."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def each_variant(cases=CASES):
    """Parametrise over cases and their options."""
    rows = [(case, variant) for case in cases for variant in range(len(case.options))]
    return pytest.mark.parametrize(("case", "variant"), rows, ids=lambda v: v.name if isinstance(v, Case) else str(v))


def each_scenario(cases=CASES):
    """Parametrise over cases and the scenarios their capabilities promise."""
    rows = [(case, scenario) for case in cases for scenario in scenarios_for(case.capabilities)]
    return pytest.mark.parametrize(
        ("case", "scenario"), rows, ids=lambda v: v.name if isinstance(v, Case) else v.__name__
    )


def each_variant_and_scenario():
    """Parametrise over everything."""
    rows = [
        (case, variant, scenario)
        for case in CASES
        for variant in range(len(case.options))
        for scenario in scenarios_for(case.capabilities)
    ]
    ids = [f"{case.name}-{variant}-{scenario.__name__}" for case, variant, scenario in rows]
    return pytest.mark.parametrize(("case", "variant", "scenario"), rows, ids=ids)


def able(*capabilities: str) -> list[Case]:
    """The cases that declare all of these capabilities."""
    return [case for case in CASES if all(getattr(case.capabilities, name) for name in capabilities)]


def of_kind(inputs: str) -> list[Case]:
    """The cases with these inputs: "labels" or "documents"."""
    return [case for case in CASES if case.capabilities.inputs == inputs]

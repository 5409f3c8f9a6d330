"""Synthetic hard negatives as an option of the loss call."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, HardNegativeMixing, Metrix, MultiSimilarityLoss, SupConLoss
from nearfar.losses.label_batch import check_label_batch
from tests.losses.cases import able, each, of_kind
from tests.losses.inputs import LabelInputs, plain, references, scenarios_for
from tests.losses.outcome import assert_same, collect, mean_of, outcome
from tests.oracles.losses import hard_negative_mixing as oracle

SYNTHESISING = able("synthesis")
MIXTURES = [
    {"hardest": 3, "mixtures": 4, "query_mixtures": 0, "seed": 3},
    {"hardest": 1, "mixtures": 0, "query_mixtures": 3, "seed": 1},
    {"hardest": 50, "mixtures": 2, "query_mixtures": 2, "seed": 0},
]
VARIANTS = [
    (case, v)
    for case in SYNTHESISING
    for v, options in enumerate(case.options)
    if options.get("grouping") != "all_pairs"
]
each_variant = pytest.mark.parametrize(
    ("case", "variant"), VARIANTS, ids=lambda v: str(v) if isinstance(v, int) else v.name
)
each_scenario = pytest.mark.parametrize(
    ("case", "scenario"),
    [(case, scenario) for case in SYNTHESISING for scenario in scenarios_for(case.capabilities)],
    ids=lambda v: v.__name__ if callable(v) else v.name,
)
each_mixture = pytest.mark.parametrize("mixture", MIXTURES, ids=["negatives", "anchor", "both"])


class Widened(nn.Module):
    """A loss that is called with ``synthesis``, from the same draws at every call."""

    def __init__(self, loss, synthesis):
        super().__init__()
        self.loss, self.synthesis = loss, synthesis

    def forward(self, *inputs):
        return self.loss(*inputs, synthesis=copy.deepcopy(self.synthesis))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def expected_outcome(case, variant, inputs, mixture):
    inputs = inputs.fresh()
    value = mean_of(oracle.oracle(case, inputs, case.full_options(variant), {}, **mixture))
    if value.requires_grad:
        value.backward()
    return collect(value, inputs, {})


# The numbers


@each_variant
@each_mixture
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_every_variant_equals_the_naive_loop(case, variant, mixture, path, tiny_tiles):
    inputs = plain(generator(2))
    found = outcome(Widened(case.build(variant, path=path), HardNegativeMixing(**mixture)), inputs)
    assert_same(found, expected_outcome(case, variant, inputs, mixture), 1e-9)


@each_scenario
@each_mixture
def test_every_scenario_equals_the_naive_loop(case, scenario, mixture, tiny_tiles):
    inputs = scenario(generator(4))
    found = outcome(Widened(case.build(), HardNegativeMixing(**mixture)), inputs)
    assert_same(found, expected_outcome(case, 0, inputs, mixture), 1e-9)


@each([case for case in SYNTHESISING if case.capabilities.unreduced])
@each_mixture
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_unreduced_values_equal_the_naive_loop(case, mixture, path, tiny_tiles):
    inputs = plain(generator(8)).fresh()
    rows = oracle.oracle(case, inputs, case.full_options(), {}, **mixture)
    expected = torch.stack([torch.zeros(()).double() if row is None else row.double() for row in rows])
    weights = torch.randn(len(rows), generator=generator(1)).double()
    expected.backward(weights)
    found = outcome(Widened(case.build(reduction="none", path=path), HardNegativeMixing(**mixture)), inputs, weights)
    assert_same(found, collect(expected.detach(), inputs, {}), 1e-9)


def test_a_worked_number():
    """An anchor at 0 degrees, its negatives at 60 and 90: in the middle lies 75."""
    angles = torch.tensor([0.0, 60.0, 90.0, 10.0]).double().deg2rad()
    x, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 1, 2, 0])
    comparison = check_label_batch(x, labels, None, None, None).cosine()
    made = Fixed(hardest=2, mixtures=1, query_mixtures=1)(comparison)
    expected = torch.tensor([75.0, 30.0]).double().deg2rad().cos()  # h, then the middle of the anchor and 60
    torch.testing.assert_close(made.row_data["synthetic"][0], expected)


class Fixed(HardNegativeMixing):
    """The middle of the two hardest negatives, and of the anchor and the hardest."""

    def _draw(self, comparison):
        between, towards = super()._draw(comparison)
        between[:], towards[:] = torch.tensor([0, 0, 0.5]), torch.tensor([0, 1])
        return between, towards


# The draws


def test_steps_differ_and_a_saved_state_repeats_them():
    inputs, loss, synthesis = plain(generator()), MultiSimilarityLoss(), HardNegativeMixing(seed=9)

    def values(synthesis, steps):
        return [loss(inputs.embeddings, inputs.labels, synthesis=synthesis).item() for _ in range(steps)]

    first = values(synthesis, 3)
    state, copied = copy.deepcopy(synthesis.state_dict()), pickle.loads(pickle.dumps(synthesis))
    later = values(synthesis, 3)
    assert len({*first, *later}) == 6
    resumed = HardNegativeMixing(seed=9)
    resumed.load_state_dict(state)
    assert values(resumed, 3) == later
    assert values(copied, 3) == later
    assert values(HardNegativeMixing(seed=9), 3) == first
    assert values(HardNegativeMixing(seed=8), 3) != first


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    plain(generator()).call(Widened(CircleLoss(), HardNegativeMixing()))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_both_options_of_one_call_add_up():
    inputs, loss = plain(generator()), MultiSimilarityLoss()
    clean, synthetic = inputs.call(loss), inputs.call(Widened(loss, HardNegativeMixing()))
    mixed = loss(inputs.embeddings, inputs.labels, mixing=Metrix())
    both = loss(inputs.embeddings, inputs.labels, mixing=Metrix(), synthesis=HardNegativeMixing())
    torch.testing.assert_close(both, mixed + synthetic - clean)


# What every loss promises


@each_scenario
@each_mixture
def test_streamed_equals_dense(case, scenario, mixture, tiny_tiles):
    inputs, synthesis = scenario(generator(5)), HardNegativeMixing(**mixture)
    dense = outcome(Widened(case.build(path="dense"), synthesis), inputs)
    assert_same(outcome(Widened(case.build(), synthesis), inputs), dense)


@each(SYNTHESISING)
def test_permuting_the_batch_permutes_the_gradient(case):
    inputs, synthesis = plain(generator()), Fixed(hardest=2, mixtures=1, query_mixtures=1)
    order = torch.randperm(len(inputs.labels), generator=generator(1))
    shuffled = LabelInputs(inputs.embeddings[order], inputs.labels[order])
    one, other = (outcome(Widened(case.build(), synthesis), each) for each in (inputs, shuffled))
    torch.testing.assert_close(other.value, one.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.gradients["embeddings"], one.gradients["embeddings"][order], rtol=1e-9, atol=1e-9)


@each(SYNTHESISING)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_one_class_has_nothing_to_mix(case, path):
    inputs = LabelInputs(torch.randn(5, 6, generator=generator()).double(), torch.zeros(5).long())
    found = outcome(Widened(case.build(path=path), HardNegativeMixing(query_mixtures=2)), inputs)
    assert_same(found, outcome(case.build(path=path), inputs), 0.0)


@each(SYNTHESISING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_full(case, dtype):
    inputs, synthesis = plain(generator(6), 64).fresh(dtype), HardNegativeMixing(query_mixtures=2)
    exact = outcome(Widened(case.build(), synthesis), inputs.fresh(torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(Widened(case.build(dtype=torch.float32), synthesis), inputs)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    gradient = found.gradients["embeddings"]
    assert gradient.dtype == dtype
    expected = exact.gradients["embeddings"].to(dtype).double()
    assert (gradient.double() - expected).norm() <= 1e-3 * expected.norm()


@each(SYNTHESISING)
def test_equal_opposite_and_zero_vectors_stay_finite(case):
    inputs = plain(generator(7))
    x = inputs.embeddings
    x[1], x[2], x[3], x[4] = x[0], -x[0], 0, 0
    for path in ("streamed", "dense"):
        for synthesis in (Fixed(query_mixtures=1), HardNegativeMixing(hardest=50, mixtures=64, query_mixtures=8)):
            found = outcome(Widened(case.build(path=path), synthesis), inputs)
            assert torch.isfinite(found.value)
            assert torch.isfinite(found.gradients["embeddings"]).all()


@each([case for case in SYNTHESISING if case.true_gradient])
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_gradient(case, path):
    inputs, loss = references(generator(9)), case.build(path=path)
    leaves = inputs.fresh().leaves()

    def call(*tensors):
        changed = replace(inputs, **dict(zip(leaves, tensors, strict=True)))
        return changed.call(Widened(loss, HardNegativeMixing(hardest=4, mixtures=3, query_mixtures=2)))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)
    if path == "dense":
        assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=True)


@each(SYNTHESISING)
def test_only_what_needs_a_gradient_gets_one(case):
    inputs, synthesis = references(generator(9)), HardNegativeMixing(query_mixtures=2)
    both = outcome(Widened(case.build(), synthesis), inputs)
    for name in ("embeddings", "ref_emb"):
        one = outcome(Widened(case.build(), synthesis), inputs, wanted=(name,))
        torch.testing.assert_close(one.gradients[name], both.gradients[name])
    with torch.no_grad():
        torch.testing.assert_close(inputs.call(Widened(case.build(), synthesis)), both.value)


# Refusals


@each([case for case in of_kind("labels") if case not in SYNTHESISING])
def test_other_losses_refuse(case):
    inputs = plain(generator())
    with pytest.raises(InputError, match=r"cannot honour synthesis: .*call it without"):
        case.build()(inputs.embeddings, inputs.labels, synthesis=HardNegativeMixing())


def test_all_pairs_have_no_anchor():
    with pytest.raises(InputError, match="all_pairs"):
        plain(generator()).call(Widened(CircleLoss(grouping="all_pairs"), HardNegativeMixing()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"hardest": 1}, "hardest=1 must be at least 2"),
        ({"hardest": 0, "mixtures": 0, "query_mixtures": 1}, "hardest=0 must be at least 1"),
        ({"mixtures": -1}, "mixtures=-1"),
        ({"query_mixtures": -2}, "query_mixtures=-2"),
        ({"mixtures": 0}, "nor both 0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_unusable_options_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        HardNegativeMixing(**options)


def test_print_shows_the_options():
    assert "hardest=16, mixtures=8, query_mixtures=0, seed=0" in repr(HardNegativeMixing())


def test_the_losses_that_synthesise():
    assert {case.name for case in SYNTHESISING} == {"circle", "multi-similarity", "ntxent", "supcon"}
    assert SupConLoss.capabilities.synthesis

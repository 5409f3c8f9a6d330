"""Mixed examples as an option of the loss call."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, ContrastiveLoss, Metrix, MultiSimilarityLoss, ThresholdConsistentMarginLoss
from nearfar.losses.engine import LabelTarget, PairTarget
from nearfar.losses.label_batch import check_label_batch
from nearfar.losses.metrix import _choose_in
from tests.losses.cases import CASES, able, each, of_kind
from tests.losses.inputs import LabelInputs, plain, references, scenarios_for
from tests.losses.outcome import assert_same, collect, mean_of, outcome
from tests.oracles.losses import metrix as oracle

KINDS = ("positive-negative", "anchor-negative")
MIXING = able("mixing")
# Every variant; options of the clean part that mixtures do not know are left out.
VARIANTS = [
    (case, v) for case in MIXING for v, options in enumerate(case.options) if options.get("grouping") != "all_pairs"
]
each_variant = pytest.mark.parametrize(
    ("case", "variant"), VARIANTS, ids=lambda v: str(v) if isinstance(v, int) else v.name
)
each_scenario = pytest.mark.parametrize(
    ("case", "scenario"),
    [(case, scenario) for case in MIXING for scenario in scenarios_for(case.capabilities)],
    ids=lambda v: v.__name__ if callable(v) else v.name,
)
each_kind = pytest.mark.parametrize("kind", KINDS)


class Mixed(nn.Module):
    """A loss that is called with ``mixing``, from the same draws at every call."""

    def __init__(self, loss, mixing):
        super().__init__()
        self.loss, self.mixing = loss, mixing

    def forward(self, *inputs):
        return self.loss(*inputs, mixing=copy.deepcopy(self.mixing))

    def named_parameters(self, *_, **__):
        return self.loss.named_parameters()


class OnlyMixed(Mixed):
    """The mixed part alone."""

    def forward(self, *inputs):
        return (super().forward(*inputs) - self.loss(*inputs)) / self.mixing.weight


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ratio_of(seed):
    return np.random.default_rng((seed, 0, 0)).beta(2, 2)


def expected_outcome(case, variant, loss, inputs, ratio, kind):
    inputs = inputs.fresh()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in loss.named_parameters()}
    value = mean_of(oracle.oracle(case.name, inputs, case.full_options(variant), parameters, ratio, kind))
    if value.requires_grad:
        value.backward()
    return collect(value, inputs, parameters)


# The numbers


@each_variant
@each_kind
def test_all_mixtures_equal_the_naive_loop(case, variant, kind, tiny_tiles):
    inputs, loss = plain(generator(2)), case.build(variant)
    found = outcome(OnlyMixed(loss, Metrix(pairs=kind, examples=None, seed=3)), inputs)
    assert_same(found, expected_outcome(case, variant, loss, inputs, ratio_of(3), kind), 1e-9)


@each_scenario
@each_kind
def test_every_scenario_equals_the_naive_loop(case, scenario, kind, tiny_tiles):
    inputs, loss = scenario(generator(4)), case.build()
    found = outcome(OnlyMixed(loss, Metrix(pairs=kind, examples=None, seed=5)), inputs)
    assert_same(found, expected_outcome(case, 0, loss, inputs, ratio_of(5), kind), 1e-9)


A, REFERENCES = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.6, 0.8], [0.0, 1.0]]).double()
ONE_MIXTURE = LabelInputs(A, torch.tensor([0]), None, REFERENCES, torch.tensor([0, 1]))


class Fixed(Metrix):
    """lambda = 0.7."""

    def _draw(self, comparison):
        _, kind, spots = super()._draw(comparison)
        return 0.7, kind, spots


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (MultiSimilarityLoss(alpha=2, beta=50, base=0.5), 0.291692),
        (ContrastiveLoss(pos_margin=0, neg_margin=0.5), 0.741580),  # as released: the negative term is 0
        # With a margin of 1 the positive term is 1 - s, where the paper's contrastive loss has -s.
        (ThresholdConsistentMarginLoss(margin_plus=1, margin_minus=0.5), -0.307185 + 0.7),
    ],
)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_worked_numbers(loss, value, path):
    loss = copy.deepcopy(loss)
    loss.path = path
    mixing = Fixed(pairs="positive-negative", weight=1)
    assert ONE_MIXTURE.call(OnlyMixed(loss, mixing)).item() == pytest.approx(value, abs=1e-6)


def test_worked_mixture():
    batch = check_label_batch(*(getattr(ONE_MIXTURE, name) for name in LabelInputs.__annotations__ if name != "floats"))
    pairs = Fixed(pairs="positive-negative")(batch.cosine())
    assert pairs.similarity.tolist() == pytest.approx([0.438835], abs=1e-6)
    assert pairs.grades.tolist() == [0.7]


def test_the_weight_multiplies_the_mixed_part():
    inputs, loss = plain(generator()), MultiSimilarityLoss()
    clean = inputs.call(loss)
    one, three = (inputs.call(Mixed(loss, Metrix(weight=weight))) - clean for weight in (1, 3))
    torch.testing.assert_close(three, 3 * one)
    assert one > 0


# Which are mixed


def chosen(target, shape, kind, examples, seed=0):
    spots = None if examples is None else torch.rand(shape[0], examples, generator=generator(seed)).double()
    row, positive, negative = _choose_in(target.tile(slice(None), slice(0, shape[1])), kind, examples, spots)
    return list(zip(row.tolist(), positive.tolist(), negative.tolist(), strict=True))


def everything(positive, negative, kind):
    found = []
    for a in range(len(positive)):
        firsts = [a] if kind == "anchor-negative" else [j for j, is_so in enumerate(positive[a]) if is_so]
        found += [(a, p, n) for p in firsts for n, is_so in enumerate(negative[a]) if is_so]
    return found


label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(label_lists, st.integers(1, 9), st.sampled_from(KINDS), st.booleans(), st.integers(0, 3))
def test_mixtures_are_distinct_and_as_many_as_asked_for(labels, examples, kind, is_self, seed):
    labels = torch.tensor(labels)
    target, shape = LabelTarget(labels, labels, 0 if is_self else None), (len(labels), len(labels))
    tile = target.tile(slice(None), slice(None))
    possible = everything(tile.positive.tolist(), tile.negative.tolist(), kind)
    assert chosen(target, shape, kind, None) == possible
    found = chosen(target, shape, kind, examples, seed)
    assert len(set(found)) == len(found)
    assert set(found) <= set(possible)
    per_anchor = [[each for each in found if each[0] == a] for a in range(len(labels))]
    for a, own in enumerate(per_anchor):
        able_to = [each for each in possible if each[0] == a]
        assert len(own) == min(examples, len(able_to))
        # Evenly over the positives: none is left out before another is used far more often.
        counts = [sum(each[1] == p for each in own) for p in {each[1] for each in able_to}]
        assert not counts or max(counts) - min(counts) <= 2
    assert [each[0] for each in found] == sorted(each[0] for each in found)


def test_mined_pairs_are_the_only_ones_mixed():
    a1, p = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])
    a2, n = torch.tensor([0, 1, 0]), torch.tensor([2, 2, 4])
    target = PairTarget((a1, p), (a2, n), (5, 5))
    assert chosen(target, (5, 5), "positive-negative", None) == [(0, 1, 2), (0, 1, 4), (0, 3, 2), (0, 3, 4)]
    assert chosen(target, (5, 5), "anchor-negative", None) == [(0, 0, 2), (0, 0, 4), (1, 1, 2)]


def test_all_negatives_are_drawn_alike():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 4, 0])
    counts = torch.zeros(10)
    for seed in range(600):
        for a, _, n in chosen(LabelTarget(labels, labels, 0), (10, 10), "positive-negative", 4, seed):
            counts[n] += a == 0
    assert not counts[labels == 0].any()
    expected = 600 * 4 / 7
    assert ((counts[labels != 0] - expected).abs() < 5 * expected**0.5).all()


def test_every_positive_is_mixed():
    inputs, kept = plain(generator()), set()
    for a, p, _ in chosen(LabelTarget(inputs.labels, inputs.labels, 0), (16, 16), "positive-negative", 5):
        kept.add((a, p))
    same = (inputs.labels[:, None] == inputs.labels) & ~torch.eye(16, dtype=torch.bool)
    assert kept == {(a, p) for a, p in same.nonzero().tolist()}


# The draws


def test_steps_differ_and_a_saved_state_repeats_them():
    inputs, loss, mixing = plain(generator()), MultiSimilarityLoss(), Metrix(seed=9)

    def values(mixing, steps):
        return [loss(inputs.embeddings, inputs.labels, mixing=mixing).item() for _ in range(steps)]

    first = values(mixing, 3)
    state = copy.deepcopy(mixing.state_dict())
    later = values(mixing, 3)
    assert len({*first, *later}) == 6
    resumed = Metrix(seed=9)
    resumed.load_state_dict(state)
    assert values(resumed, 3) == later
    assert values(Metrix(seed=9), 3) == first
    assert values(Metrix(seed=8), 3) != first


def test_both_kinds_come_up_and_lambda_is_beta():
    batch = check_label_batch(plain(generator()).embeddings, plain(generator()).labels, None, None, None)
    mixing, comparison = Metrix(seed=1), batch.cosine()
    drawn = [mixing._draw(comparison)[:2] for _ in range(400)]
    kinds = [kind for _, kind in drawn]
    assert 160 < kinds.count("positive-negative") < 240
    ratios = np.array([ratio for ratio, _ in drawn])
    assert abs(ratios.mean() - 0.5) < 0.04
    assert abs(ratios.var() - 0.05) < 0.01  # of Beta(2, 2)


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    plain(generator()).call(Mixed(CircleLoss(), Metrix()))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# What every loss promises


@each_scenario
@each_kind
@pytest.mark.parametrize("examples", [1, 3])
def test_streamed_equals_dense(case, scenario, kind, examples, tiny_tiles):
    inputs, mixing = scenario(generator(5)), Metrix(pairs=kind, examples=examples)
    dense = outcome(Mixed(case.build(path="dense"), mixing), inputs)
    assert_same(outcome(Mixed(case.build(), mixing), inputs), dense)


@each(MIXING)
@each_kind
def test_permuting_the_batch_permutes_the_gradient(case, kind):
    inputs, mixing = plain(generator()), Metrix(pairs=kind, examples=None)
    order = torch.randperm(len(inputs.labels), generator=generator(1))
    shuffled = LabelInputs(inputs.embeddings[order], inputs.labels[order])
    one, other = (outcome(Mixed(case.build(), mixing), each) for each in (inputs, shuffled))
    torch.testing.assert_close(other.value, one.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.gradients["embeddings"], one.gradients["embeddings"][order], rtol=1e-9, atol=1e-9)


@each(MIXING)
@pytest.mark.parametrize("labels", [torch.zeros(5).long(), torch.arange(5)], ids=["one class", "orphans"])
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_without_mixtures_the_mixed_part_is_a_zero_on_the_graph(case, labels, path):
    if case.has_classes:  # a proxy has a positive in its only sample, and here no negative
        labels = torch.zeros(5).long()
    inputs = LabelInputs(torch.randn(5, 6, generator=generator()).double(), labels)
    found = outcome(Mixed(case.build(path=path), Metrix(pairs="positive-negative")), inputs)
    assert_same(found, outcome(case.build(path=path), inputs), 0.0)


@each(MIXING)
@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_full(case, kind, dtype):
    inputs = plain(generator(6), 64).fresh(dtype)
    exact = outcome(Mixed(case.build(dim=64), Metrix(pairs=kind)), inputs.fresh(torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(Mixed(case.build(dim=64, dtype=torch.float32), Metrix(pairs=kind)), inputs)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    gradient = found.gradients["embeddings"]
    assert gradient.dtype == dtype
    expected = exact.gradients["embeddings"].to(dtype).double()
    assert (gradient.double() - expected).norm() <= 1e-3 * expected.norm()


@each(MIXING)
@each_kind
def test_equal_opposite_and_zero_vectors_stay_finite(case, kind):
    inputs = plain(generator(7))
    x = inputs.embeddings
    x[1], x[2], x[3], x[4] = x[0], -x[0], 0, 0
    for path in ("streamed", "dense"):
        loss = Mixed(case.build(path=path), Fixed(pairs=kind, examples=None))
        loss.mixing._draw = lambda comparison: (0.5, kind, None)  # opposite vectors cancel
        found = outcome(loss, inputs)
        assert all(torch.isfinite(gradient).all() for gradient in found.gradients.values())


@each([case for case in MIXING if case.capabilities.unreduced])
@each_kind
def test_unreduced_values_average_to_the_mean(case, kind):
    inputs = plain(generator(8))
    values = inputs.call(OnlyMixed(case.build(reduction="none"), Metrix(pairs=kind)))
    mean = inputs.call(OnlyMixed(case.build(), Metrix(pairs=kind)))
    assert values.shape == (16,)
    counted = 16 if case.name == "multi-similarity" else int((values != 0).sum())
    torch.testing.assert_close(values.sum() / counted, mean)


@each([case for case in MIXING if case.true_gradient])
@each_kind
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_gradient(case, kind, path):
    inputs, loss = references(generator(9)) if case.capabilities.reference_set else plain(generator(9)), case.build()
    loss.path = path
    leaves = inputs.fresh().leaves()

    def call(*tensors):
        changed = replace(inputs, **dict(zip(leaves, tensors, strict=True)))
        return changed.call(Mixed(loss, Metrix(pairs=kind)))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)
    if path == "dense":
        assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=True)


def test_memory_does_not_grow_with_the_square():
    labels = torch.zeros(3000, dtype=torch.long)
    labels[1500:] = 1  # 1500 x 1500 mixtures an anchor
    embeddings = torch.randn(3000, 4, generator=generator())
    pairs = Metrix(pairs="positive-negative")(check_label_batch(embeddings, labels, None, None, None).cosine())
    assert len(pairs.similarity) == 3000 * 16


# Refusals


@each([case for case in of_kind("labels") if case not in MIXING])
def test_other_losses_refuse(case):
    inputs = plain(generator())
    with pytest.raises(InputError, match=r"cannot honour mixing: .*call it without"):
        case.build()(inputs.embeddings, inputs.labels, mixing=Metrix())


def test_all_pairs_have_no_anchor():
    with pytest.raises(InputError, match="all_pairs"):
        plain(generator()).call(Mixed(CircleLoss(grouping="all_pairs"), Metrix()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"alpha": 0}, "alpha"),
        ({"weight": -1}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"pairs": "negative"}, "pairs"),
        ({"examples": 0}, "examples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_unusable_options_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        Metrix(**options)


def test_print_shows_the_options():
    assert "alpha=2.0, weight=0.4, pairs='either', examples=16, seed=0" in repr(Metrix())


def test_the_losses_that_mix_are_those_with_the_form():
    assert {case.name for case in CASES if case.capabilities.mixing} == set(oracle.LOSSES)

"""Faults found in pytorch-metric-learning 2.9 that nearfar does not share, numbered, one test for each.

Elsewhere: 14 (its pair losses do not compile as one graph) in ``test_compile.py``, 15 (what its import costs) in
``test_imports.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nearfar.losses import NTXentLoss, SubCenterArcFaceLoss, ThresholdConsistentMarginLoss, TripletMarginLoss
from tests.losses.cases import BY_NAME
from tests.losses.inputs import references
from tests.losses.outcome import assert_same, oracle_outcome, outcome


def _at_angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor([math.radians(d) for d in degrees])
    return torch.stack([radians.cos(), radians.sin()], dim=1).requires_grad_()


@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_fault_4_nt_xent_keeps_the_gradient_of_hard_pairs_at_low_temperature(path):
    # Positives almost opposite, negatives almost equal: a small constant inside the logarithm would cap the loss at 87.
    x, labels = _at_angles(0, 170, 10, 175), torch.tensor([0, 0, 1, 1])
    value = NTXentLoss(temperature=0.01, path=path)(x, labels)
    value.backward()

    exact = x.detach().double().requires_grad_()
    terms = []
    for a, p in [(0, 1), (1, 0), (2, 3), (3, 2)]:
        others = [n for n in range(4) if n not in (a, p)]
        cosines = torch.nn.functional.cosine_similarity(exact[a][None], exact[[p, *others]]) / 0.01
        terms.append(torch.logsumexp(cosines, 0) - cosines[0])
    expected = sum(terms) / 4
    expected.backward()
    assert expected > 150
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert x.grad.norm() > 1
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


def test_fault_5_threshold_consistent_margin_compares_with_the_references():
    inputs = references(torch.Generator().manual_seed(0))
    more = replace(inputs, ref_emb=inputs.ref_emb.repeat(3, 1), ref_labels=inputs.ref_labels.repeat(3))
    moved = replace(inputs, ref_emb=inputs.ref_emb.flip(0))
    loss = ThresholdConsistentMarginLoss()
    assert len(more.ref_emb) > len(inputs.embeddings)
    assert outcome(loss, moved).value != outcome(loss, inputs).value
    for case_inputs in (inputs, more, moved):
        expected = oracle_outcome(BY_NAME["threshold-consistent-margin"], 0, loss, case_inputs)
        assert_same(outcome(loss, case_inputs), expected)


@pytest.mark.parametrize("copies", [1, 4], ids=["fewer references", "more references"])
@pytest.mark.parametrize("mined", [False, True])
def test_fault_6_triplets_swap_with_a_reference_set(copies, mined):
    inputs = references(torch.Generator().manual_seed(1))
    inputs = replace(inputs, ref_emb=inputs.ref_emb.repeat(copies, 1), ref_labels=inputs.ref_labels.repeat(copies))
    if mined:
        same = inputs.labels[:, None] == inputs.ref_labels
        triplets = (same[:, :, None] & ~same[:, None, :]).nonzero().unbind(1)
        inputs = replace(inputs, indices_tuple=triplets)
    case, variant = BY_NAME["triplet-margin"], 1
    loss = case.build(variant)
    assert isinstance(loss, TripletMarginLoss)
    assert loss.swap
    assert_same(outcome(loss, inputs), oracle_outcome(case, variant, loss, inputs))


def test_fault_13_sub_center_arcface_takes_its_sizes_by_position():
    loss = SubCenterArcFaceLoss(8, 16)
    assert torch.isfinite(loss(torch.eye(4, 16), torch.arange(4)))

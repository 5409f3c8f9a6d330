"""Every loss equals the naive loop over its pairs, in value and gradient."""

from __future__ import annotations

import zlib

import pytest
import torch

from nearfar.losses import list_losses
from tests.losses.cases import BY_NAME, CASES, able, each, each_variant, each_variant_and_scenario, of_kind
from tests.losses.inputs import typical
from tests.losses.outcome import assert_same, oracle_outcome, oracle_rows, outcome


def test_every_loss_of_the_registry_has_one_case():
    assert sorted(BY_NAME) == sorted(entry.name for entry in list_losses())
    assert len(BY_NAME) == len(CASES)


@each_variant_and_scenario()
def test_equals_the_naive_loop_in_every_scenario(case, variant, scenario):
    seed = zlib.crc32(f"{case.name} {variant} {scenario.__name__}".encode())
    inputs = scenario(torch.Generator().manual_seed(seed))
    loss = case.build(variant)
    found = outcome(loss, inputs)
    assert found.value.ndim == 0
    assert found.value.dtype == torch.float64
    assert_same(found, oracle_outcome(case, variant, loss, inputs))


@each_variant()
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_equals_the_naive_loop_on_several_seeds(case, variant, seed):
    inputs = typical(case.capabilities, seed)
    loss = case.build(variant)
    assert_same(outcome(loss, inputs), oracle_outcome(case, variant, loss, inputs))


@each(of_kind("labels"))
@pytest.mark.parametrize("seed", [1, 2])
def test_exact_copies_in_other_classes_are_not_taken_for_the_sample_itself(case, seed):
    inputs = typical(case.capabilities, seed)
    inputs.embeddings[3:6] = inputs.embeddings[:3]
    loss = case.build()
    # The value alone: which of several equal pairs gets a gradient is a matter of taste.
    expected = oracle_outcome(case, 0, loss, inputs).value
    torch.testing.assert_close(inputs.call(loss).detach().double(), expected, rtol=1e-10, atol=1e-10)


@each(able("unreduced"))
def test_unreduced_values_equal_the_naive_loop_row_by_row(case):
    inputs = typical(case.capabilities)
    loss = case.build(reduction="none")
    rows, _, _ = oracle_rows(case, 0, loss, inputs)
    expected = torch.stack([torch.zeros((), dtype=torch.float64) if r is None else r.detach() for r in rows])
    torch.testing.assert_close(inputs.call(loss).detach(), expected, rtol=1e-10, atol=1e-10)

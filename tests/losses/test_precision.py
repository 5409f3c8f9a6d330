"""Half precision, autocast, low temperatures and large scales: right numbers, never NaN."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import CASES, ENTRIES, each, each_variant
from tests.losses.inputs import typical
from tests.losses.outcome import outcome

WIDE = 64  # enough entries for the rounding of a half-precision gradient to average out


@each_variant()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_inputs_are_computed_in_full(case, variant, dtype):
    rounded = typical(case.capabilities, seed=2, dim=WIDE).fresh(dtype)
    loss = case.build(variant, dim=WIDE, dtype=torch.float32)
    reference = outcome(case.build(variant, dim=WIDE), rounded.fresh(torch.float64))
    found = outcome(loss, rounded)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), reference.value, rtol=1e-4, atol=1e-6)
    if reference.value.abs() <= 1e-3:
        return
    for name, gradient in found.gradients.items():
        # bfloat16 cannot hold a gradient to 1e-3, so the reference is rounded as the gradient is: once.
        expected = reference.gradients[name].to(gradient.dtype).double()
        assert (gradient.double() - expected).norm() <= 1e-3 * expected.norm(), name


@each()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_loss_in_half_precision_itself(case, dtype):
    inputs = typical(case.capabilities, dim=WIDE).fresh(dtype)
    found = outcome(case.build(dim=WIDE, dtype=dtype), inputs)
    assert found.value.dtype == torch.float32
    assert all(torch.isfinite(gradient).all() for gradient in found.gradients.values())


@each_variant()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_autocast_changes_nothing(case, variant, dtype):
    inputs = typical(case.capabilities, dim=WIDE).fresh(dtype)
    loss = case.build(variant, dim=WIDE, dtype=torch.float32)
    plain = inputs.call(loss)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inputs.call(loss)
    assert mixed.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=1e-6)


_SHARP = {"temperature": 0.01, "gamma": 256, "beta": 1000, "scale": 1000, "tau": 50}


_SHARP_CASES = [(case, option) for case in CASES for option in _SHARP if option in ENTRIES[case.name].options]


@pytest.mark.parametrize(("case", "option"), _SHARP_CASES, ids=lambda v: v if isinstance(v, str) else v.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_sharp_losses_stay_finite(case, option, dtype):
    options = ENTRIES[case.name].options
    other = {"temperature": "scale", "scale": "temperature"}.get(option)
    changes = {option: _SHARP[option], **({other: None} if other in options else {})}
    inputs = typical(case.capabilities, dim=WIDE).fresh(dtype)
    with torch.no_grad():
        for leaf in inputs.leaves().values():  # the worst case as well: equal and opposite points
            leaf[1], leaf[2] = leaf[0], -leaf[0]
    loss = case.build(dim=WIDE, dtype=torch.float32, **changes)
    exact = outcome(case.build(dim=WIDE, **changes), inputs.fresh(torch.float64))
    found = outcome(loss, inputs)
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    for name, gradient in found.gradients.items():
        assert torch.isfinite(gradient).all(), name
    assert any(gradient.any() for gradient in found.gradients.values())

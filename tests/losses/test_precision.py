"""Half precision, autocast, low temperatures and large scales: right numbers, never NaN."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import CASES, ENTRIES, each, each_variant
from tests.losses.inputs import typical
from tests.losses.outcome import outcome

WIDE = 64
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
_SHARP = {"temperature": 0.01, "gamma": 256, "beta": 1000, "scale": 1000, "tau": 50}
_SHARP_CASES = [(case, option) for case in CASES for option in _SHARP if option in ENTRIES[case.name].options]
each_sharp_case = pytest.mark.parametrize(
    ("case", "option"), _SHARP_CASES, ids=lambda v: v if isinstance(v, str) else v.name
)


def sharp(case, option):
    """Constructor options that make the loss as sharp as anybody wants it."""
    other = {"temperature": "scale", "scale": "temperature"}.get(option)
    return {option: _SHARP[option], **({other: None} if other in ENTRIES[case.name].options else {})}


def check_half_precision(build, inputs):
    """A half-precision batch has the value and gradient of the same numbers in float32; only the gradient is rounded.

    Args:
        build: ``build(dtype)``, the loss with parameters of that type.
        inputs: the batch, in half precision.
    """
    exact = outcome(build(torch.float64), inputs.fresh(torch.float64))
    raised = outcome(build(torch.float32), inputs.fresh(torch.float32))
    half = outcome(build(torch.float32), inputs)
    assert half.value.dtype == torch.float32
    torch.testing.assert_close(half.value, raised.value, rtol=0, atol=0)
    torch.testing.assert_close(raised.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    assert half.gradients.keys() == exact.gradients.keys()
    for name, gradient in raised.gradients.items():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all(), name
        if exact.value.abs() > 1e-3:
            expected = exact.gradients[name]
            assert (gradient.double() - expected).norm() <= 1e-3 * expected.norm(), name
        # Rounded once, at the very end.
        assert torch.equal(half.gradients[name], gradient.to(half.gradients[name].dtype)), name


@each_variant()
@HALVES
def test_half_precision_inputs_are_computed_in_full(case, variant, dtype):
    inputs = typical(case.capabilities, seed=2, dim=WIDE).fresh(dtype)
    check_half_precision(lambda kind: case.build(variant, dim=WIDE, dtype=kind), inputs)


@each_sharp_case
@HALVES
def test_half_precision_inputs_of_sharp_losses_are_computed_in_full(case, option, dtype):
    inputs = typical(case.capabilities, seed=3, dim=WIDE).fresh(dtype)
    check_half_precision(lambda kind: case.build(dim=WIDE, dtype=kind, **sharp(case, option)), inputs)


@each()
@HALVES
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


@each_sharp_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_sharp_losses_stay_finite(case, option, dtype):
    inputs = typical(case.capabilities, dim=WIDE).fresh(dtype)
    with torch.no_grad():
        for leaf in inputs.leaves().values():  # the worst case as well: equal and opposite points
            leaf[1], leaf[2] = leaf[0], -leaf[0]
    loss = case.build(dim=WIDE, dtype=torch.float32, **sharp(case, option))
    exact = outcome(case.build(dim=WIDE, **sharp(case, option)), inputs.fresh(torch.float64))
    found = outcome(loss, inputs)
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    for name, gradient in found.gradients.items():
        assert torch.isfinite(gradient).all(), name
    assert any(gradient.any() for gradient in found.gradients.values())

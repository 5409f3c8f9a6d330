"""Finite differences, of the first and the second order."""

from __future__ import annotations

import pytest
import torch

from nearfar.errors import InputError
from tests.losses.cases import CASES, each_variant
from tests.losses.inputs import typical

SMOOTH = [case for case in CASES if case.true_gradient]


def _function(case, variant, path):
    inputs = typical(case.capabilities, seed=7).fresh()
    loss = case.build(variant, path=path)
    names = list(inputs.leaves())

    def call(*leaves):
        for name, leaf in zip(names, leaves, strict=False):
            setattr(inputs, name, leaf)
        values = dict(zip(dict(loss.named_parameters()), leaves[len(names) :], strict=True))
        return torch.func.functional_call(_Caller(loss, inputs), {f"loss.{k}": v for k, v in values.items()}, ())

    parameters = [p.detach().clone().requires_grad_() for p in loss.parameters()]
    return call, (*inputs.leaves().values(), *parameters)


class _Caller(torch.nn.Module):
    def __init__(self, loss, inputs):
        super().__init__()
        self.loss, self.inputs = loss, inputs

    def forward(self):
        return self.inputs.call(self.loss)


@each_variant(SMOOTH)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_gradient(case, variant, path, tiny_tiles):
    call, leaves = _function(case, variant, path)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@each_variant(SMOOTH)
def test_gradient_of_the_gradient_of_the_dense_path(case, variant):
    call, leaves = _function(case, variant, "dense")
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@each_variant([case for case in SMOOTH if case.capabilities.streams])
def test_the_streamed_path_refuses_a_second_derivative(case, variant):
    call, leaves = _function(case, variant, "streamed")
    with pytest.raises(InputError, match="path='dense'"):
        torch.autograd.grad(call(*leaves), leaves, create_graph=True)

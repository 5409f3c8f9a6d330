"""Value and gradients of a loss or of its oracle, and how they are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.losses.inputs import Inputs


@dataclass
class Outcome:
    """A value, with the gradient of every leaf and parameter by name (zeros where nothing arrived)."""

    value: Tensor
    gradients: dict[str, Tensor]


def outcome(loss, inputs: Inputs, cotangent: Tensor | None = None, wanted: tuple[str, ...] | None = None) -> Outcome:
    """Call the loss on fresh leaves and go back."""
    inputs = inputs.fresh(wanted=wanted)
    loss.zero_grad(set_to_none=True)
    value = inputs.call(loss)
    value.backward(cotangent)
    return collect(value, inputs, dict(loss.named_parameters()))


def oracle_rows(case, variant: int, loss, inputs: Inputs, dim: int | None = None):
    """What the oracle says, on fresh leaves: (rows or scalar, the leaves, the parameters)."""
    inputs = inputs.fresh()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in loss.named_parameters()}
    options = case.full_options(variant) if dim is None else case.full_options(variant, dim)
    return case.oracle(inputs, options, parameters), inputs, parameters


def oracle_outcome(case, variant: int, loss, inputs: Inputs, dim: int | None = None) -> Outcome:
    """The oracle's mean over the rows that count, and its gradients."""
    found, inputs, parameters = oracle_rows(case, variant, loss, inputs, dim)
    value = mean_of(found)
    if value.requires_grad:
        value.backward()
    return collect(value, inputs, parameters)


def mean_of(found) -> Tensor:
    if isinstance(found, Tensor):
        return found.double()
    counted = [value for value in found if value is not None]
    return (sum(counted) / len(counted) if counted else torch.zeros(())).double()


def collect(value: Tensor, inputs: Inputs, parameters: dict[str, Tensor]) -> Outcome:
    gradients = {}
    for name, leaf in {**inputs.leaves(), **parameters}.items():
        if leaf.requires_grad:
            gradients[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
    return Outcome(value.detach(), gradients)


def assert_same(found: Outcome, expected: Outcome, tolerance: float = 1e-10) -> None:
    """Values and gradients agree, relative plus absolute."""
    torch.testing.assert_close(
        found.value.double(), expected.value.double(), rtol=tolerance, atol=tolerance, msg=_labelled("value")
    )
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        # Entries of a gradient share its scale: what cancels in one entry is rounding of the others.
        scale = max(1.0, gradient.abs().max().item()) if gradient.numel() else 1.0
        torch.testing.assert_close(
            found.gradients[name],
            gradient,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=_labelled(f"gradient of {name}"),
        )


def _labelled(name: str):
    return lambda message: f"{name}: {message}"

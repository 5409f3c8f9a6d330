"""Values worked out by hand or with the official code, to the digits they were printed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.losses.cases import ENTRIES
from tests.losses.inputs import DocumentInputs, Inputs, LabelInputs

X = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]], dtype=torch.float64)
T1 = LabelInputs(X, torch.tensor([0, 0, 1, 1]))
# An orphan more.
ORPHAN = torch.cat([X, torch.tensor([[0.0, -1.0]], dtype=torch.float64)])
T1_PLUS = LabelInputs(ORPHAN, torch.tensor([0, 0, 1, 1, 2]))
BLOBS = LabelInputs(
    torch.tensor(
        [[0, 0], [1, 0], [0, 1], [4, 0], [5, 0], [4, 1.2], [0, 6], [1, 6], [0, 7.1]],
        dtype=torch.float64,
    ),
    torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]),
)
_SCORES = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0], [0.3, -0.2, 1.5, 0.7, -0.5]], dtype=torch.float64)
_RELEVANT = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]])


def cosines(matrix: torch.Tensor, relevance: torch.Tensor, mask: torch.Tensor | None = None) -> DocumentInputs:
    """Unit queries and documents whose cosines are ``matrix`` (each below 1 / sqrt(queries))."""
    count = len(matrix)
    rest = (1 - matrix.square().sum(0)).sqrt()
    documents = torch.cat([matrix, rest[None]]).T  # (N, queries + 1)
    return DocumentInputs(torch.eye(count + 1, dtype=matrix.dtype)[:count], documents, relevance, mask)


FX_A = cosines(_SCORES / 4, _RELEVANT)
FX_A_SAMPLED = cosines(
    _SCORES / 4,
    torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]),
    torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool(),
)

#: name, options, inputs, value, tolerance
NUMBERS: list[tuple[str, dict[str, Any], Inputs, float, float]] = [
    ("circle", {"m": 0.25, "gamma": 2}, T1, 1.485119, 1e-6),
    ("circle", {"m": 0.4, "gamma": 80}, T1, 19.546574, 1e-6),
    ("circle", {"m": 0.25, "gamma": 256}, T1, 98.88, 1e-6),
    ("circle", {"m": 0.25, "gamma": 2}, T1_PLUS, 1.727553, 1e-6),
    ("multi-similarity", {"beta": 40, "mining_margin": 0.1}, T1, 0.29953479, 1e-8),
    ("multi-similarity", {"beta": 50, "mining_margin": 0.1}, T1, 0.29953472, 1e-8),
    ("multi-similarity", {"beta": 50}, T1, 0.449069, 1e-6),
    ("multi-similarity", {"beta": 50, "mining_margin": 0.1}, T1_PLUS, 0.239628, 1e-6),
    ("multi-similarity", {"beta": 50}, T1_PLUS, 0.359256, 1e-6),
    ("icnn", {"k": 4, "neighbours": 5}, BLOBS, 0.523563, 1e-6),
    ("icnn", {"k": 2, "neighbours": 6}, BLOBS, 0.078982, 1e-6),
    ("nbc-softmax", {"num_classes": 4, "embedding_size": 2, "weight": 1.0}, T1_PLUS, 0.260332, 1e-6),
    ("threshold-consistent-margin", {}, T1, 0.6, 1e-6),
    ("decoupled-softmax", {"scale": 4}, FX_A, 0.635651, 1e-6),
    ("decoupled-softmax", {"scale": 4}, FX_A_SAMPLED, 0.534597, 1e-6),
]


@pytest.mark.parametrize("path", ["streamed", "dense"])
@pytest.mark.parametrize(("name", "options", "inputs", "value", "tolerance"), NUMBERS)
def test_worked_number(name, options, inputs, value, tolerance, path):
    loss = ENTRIES[name].loss(**options, path=path).double()
    assert inputs.call(loss).item() == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(("name", "options", "inputs", "value", "tolerance"), NUMBERS)
def test_worked_number_in_float32(name, options, inputs, value, tolerance):
    inputs = inputs.fresh(torch.float32)
    assert inputs.call(ENTRIES[name].loss(**options)).item() == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_circle_gradient_of_a_single_pair():
    # One anchor with s_p = 0.6 and s_n = 0.8; the references are orthogonal to what they share with it.
    anchor = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    others = torch.tensor([[0.6, 0.8, 0.0], [0.8, 0.0, 0.6]], dtype=torch.float64, requires_grad=True)
    loss = ENTRIES["circle"].loss(m=0.25, gamma=2)
    value = loss(anchor, torch.tensor([0]), None, others, torch.tensor([0, 1]))
    value.backward()
    assert value.item() == pytest.approx(1.580509, abs=1e-6)
    # The gradient on a unit reference is dL/ds times the anchor's part across it, of length sqrt(1 - s^2).
    lengths = others.grad.norm(dim=1) / torch.tensor([0.8, 0.6], dtype=torch.float64)
    torch.testing.assert_close(lengths, torch.tensor([1.032369, 1.667672]).double(), rtol=0, atol=1e-6)
    assert others.grad[0, 0] < 0 < others.grad[1, 0]


def test_decoupled_softmax_row_values():
    values = FX_A.call(ENTRIES["decoupled-softmax"].loss(scale=4, reduction="none"))
    expected = torch.tensor([(0.342350 + 0.746567) / 2, 0.726843], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-6)  # from terms rounded to six digits

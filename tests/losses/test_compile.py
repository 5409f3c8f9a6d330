"""Every dense path compiles as one graph, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import CASES, each
from tests.losses.inputs import typical

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
# A compiled graph holds constants, not a generator of random numbers.
DRAWS = {"elasticface": "draws its margins with a generator of its own"}


def _compiled(case, backend, dtype=torch.float64):
    torch._dynamo.reset()
    inputs, loss = typical(case.capabilities), case.build(path="dense", dtype=dtype)
    documents = case.capabilities.inputs == "documents"

    def call(first, *second):
        return loss(first, *second, inputs.relevance) if documents else loss(first, inputs.labels)

    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in inputs.leaves().values()]
    expected = call(*leaves)
    wanted = torch.autograd.grad(expected, [*leaves, *loss.parameters()], allow_unused=True)
    found = torch.compile(call, fullgraph=True, backend=backend)(*leaves)
    gradients = torch.autograd.grad(found, [*leaves, *loss.parameters()], allow_unused=True)
    return (found, *gradients), (expected, *wanted)


@each([case for case in CASES if case.name not in DRAWS])
def test_one_graph_for_forward_and_backward(case):
    found, expected = _compiled(case, "aot_eager")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each([case for case in CASES if case.name in ("circle", "triplet-margin")])
def test_generated_code_says_the_same(case):
    found, expected = _compiled(case, "inductor", torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

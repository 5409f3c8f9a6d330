"""Walking a similarity in tiles equals autograd on the whole matrix."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses.engine import Dot, Euclidean, unit
from tests.losses.inputs import points

KINDS = [Dot(), Dot(normalise_columns=True), Euclidean(), Euclidean(1e-6)]


def naive(kind, rows, columns):
    if isinstance(kind, Dot):
        if kind.normalise_columns:
            columns = columns / columns.square().sum(1, keepdim=True).sqrt()
        return rows @ columns.T
    return ((rows[:, None] - columns).square().sum(2) + kind.epsilon).sqrt()


@pytest.fixture
def sides():
    g = torch.Generator().manual_seed(3)
    return points(7, g), points(10, g)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dense_equals_the_definition(kind, sides):
    rows, columns = (side.clone().requires_grad_() for side in sides)
    cotangent = torch.randn(7, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = kind.dense(rows, columns), naive(kind, rows, columns)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for side in (rows, columns):
        gradients = [torch.autograd.grad(v, side, cotangent, retain_graph=True)[0] for v in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_walk_equals_dense_autograd(kind, sides, wanted):
    rows, columns = (side.clone().requires_grad_(want) for side, want in zip(sides, wanted, strict=True))
    cotangent = torch.randn(7, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = kind.dense(rows, columns)
    leaves = [side for side in (rows, columns) if side.requires_grad]
    expected = iter(torch.autograd.grad(dense, leaves, cotangent))

    walk = kind.walk(rows.detach(), columns.detach(), *wanted)
    for start in range(0, 7, 3):
        for left in range(0, 10, 4):
            block = slice(start, min(start + 3, 7)), slice(left, min(left + 4, 10))
            tile = walk.tile(*block)
            torch.testing.assert_close(tile, dense.detach()[block], rtol=1e-12, atol=1e-12)
            walk.pull(*block, tile, cotangent[block].clone())
    walk.finish()
    for want, gradient in zip(wanted, (walk.grad_rows, walk.grad_columns), strict=True):
        if want:
            torch.testing.assert_close(gradient, next(expected), rtol=1e-11, atol=1e-11)
        else:
            assert gradient is None


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_finite_differences_of_both_orders(kind, sides):
    leaves = tuple(side[:4].clone().requires_grad_() for side in sides)
    assert torch.autograd.gradcheck(kind.dense, leaves)
    assert torch.autograd.gradgradcheck(kind.dense, leaves)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_near_duplicates_in_float32(epsilon):
    """Expanded squares would put these distances, of 1e-4 between points of length 10, at 0 or NaN."""
    g = torch.Generator().manual_seed(2)
    base = 10 * unit(points(6, g, 32))
    rows = base.float()
    columns = (rows.double() + 1e-4 * unit(points(6, g, 32))).float()
    kind = Euclidean(epsilon)

    def run(dtype):
        leaves = tuple(side.to(dtype).requires_grad_() for side in (rows, columns))
        distance = kind.dense(*leaves).diagonal()
        return distance.detach().double(), *(g.double() for g in torch.autograd.grad(distance.sum(), leaves))

    found, exact = run(torch.float32), run(torch.float64)
    for one, other in zip(found, exact, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_points_and_zero_vectors_have_finite_gradients(kind, dtype):
    rows = torch.ones(3, 5, dtype=dtype)
    rows[2] = 0
    leaves = tuple(rows.clone().requires_grad_() for _ in range(2))
    walk = kind.walk(*(leaf.detach() for leaf in leaves), True, True)
    everything = slice(0, 3), slice(0, 3)
    tile = walk.tile(*everything)
    walk.pull(*everything, tile, torch.ones_like(tile))
    walk.finish()
    gradients = torch.autograd.grad(kind.dense(*leaves).sum(), leaves)
    for found, expected in zip((walk.grad_rows, walk.grad_columns), gradients, strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected)


def test_unit_vectors():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], dtype=torch.float64, requires_grad=True)
    found = unit(vectors)
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert not found[1:].any()
    found.sum().backward()
    assert not vectors.grad[1:].any()
    assert torch.autograd.gradcheck(unit, vectors.detach()[:1].requires_grad_())

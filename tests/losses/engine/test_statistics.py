"""Merged statistics equal those of the dense matrix, and carry gradients to every operand."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses.engine import (
    Comparison,
    LabelTarget,
    LogSumExp,
    Maximum,
    Sum,
    masked_logsumexp,
    segment_logsumexp,
    segment_sum,
    softplus,
    statistics,
)
from nearfar.losses.engine.row_local import row_local, row_values
from tests.losses.inputs import points

AXES = ["rows", "columns", "all"]
REDUCE = {
    Sum: lambda s, dims: s.sum(dims),
    LogSumExp: lambda s, dims: torch.logsumexp(s, dims),
    Maximum: lambda s, dims: s.amax(dims),
}
DIMS = {"rows": (1,), "columns": (0,), "all": (0, 1)}


def batch(requires_grad: bool = True):
    g = torch.Generator().manual_seed(4)
    rows, columns = points(11, g), points(9, g)
    data = {
        "rows": rows,
        "columns": columns,
        "row": torch.randn(11, generator=g, dtype=torch.float64),
        "column": torch.randn(9, generator=g, dtype=torch.float64),
        "parameter": torch.randn((), generator=g, dtype=torch.float64),
    }
    return {name: value.requires_grad_(requires_grad) for name, value in data.items()}


def comparison(data) -> Comparison:
    return Comparison(
        data["rows"],
        data["columns"],
        LabelTarget(torch.arange(11) % 3, torch.arange(9) % 3),
        row_data={"shift": data["row"]},
        column_data={"bias": data["column"]},
        parameters={"scale": data["parameter"]},
    )


def scores(data):
    return data["rows"] @ data["columns"].T * data["parameter"].exp() + data["row"][:, None] + data["column"]


def tile_scores(tile):
    return tile.similarity * tile.parameters["scale"].exp() + tile.row["shift"][:, None] + tile.column["bias"]


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("kind", [Sum, LogSumExp, Maximum])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("path", ["streamed", "dense"])
@pytest.mark.parametrize("whole_rows", [False, True])
def test_a_statistic_equals_the_dense_one(kind, axis, path, whole_rows):
    data, expected_data = batch(), batch()
    found = statistics(
        comparison(data),
        {"x": kind(axis)},
        lambda tile: {"x": REDUCE[kind](tile_scores(tile), DIMS[axis])},
        path,
        whole_rows,
    )["x"]
    expected = REDUCE[kind](scores(expected_data), DIMS[axis])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found.backward(cotangent)
    expected.backward(cotangent)
    for name, leaf in data.items():
        torch.testing.assert_close(leaf.grad, expected_data[name].grad, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_symmetric_contrastive_loss_from_two_statistics(path):
    """InfoNCE in both directions: log-sum-exps over rows and over columns, and the diagonal."""
    g = torch.Generator().manual_seed(9)
    rows, columns = points(10, g).requires_grad_(), points(10, g).requires_grad_()
    log_scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    target = LabelTarget(torch.arange(10), torch.arange(10))

    def tile(block):
        logits = block.similarity * block.parameters["log_scale"].exp()
        everywhere = torch.ones_like(logits, dtype=torch.bool)
        own = logits.masked_fill(~block.target.positive, 0.0).sum()
        down = masked_logsumexp(logits, everywhere, dim=0)
        return {"across": masked_logsumexp(logits, everywhere), "down": down, "own": own}

    kinds = {"across": LogSumExp("rows"), "down": LogSumExp("columns"), "own": Sum("all")}
    compared = Comparison(rows, columns, target, parameters={"log_scale": log_scale})
    found = statistics(compared, kinds, tile, path)
    value = (found["across"].sum() + found["down"].sum()) / 2 - found["own"]
    gradients = torch.autograd.grad(value, (rows, columns, log_scale))

    logits = rows @ columns.T * log_scale.exp()
    answers = torch.arange(10)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(logits, answers, reduction="sum") + cross_entropy(logits.T, answers, reduction="sum")
    torch.testing.assert_close(value, expected / 2, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(expected / 2, (rows, columns, log_scale)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("kind", [LogSumExp, Maximum])
def test_rows_that_select_nothing_stay_minus_infinity_without_gradient(kind):
    data = batch()

    def tile(block):
        s = tile_scores(block)
        if kind is LogSumExp:
            return {"x": masked_logsumexp(s, block.target.positive & (block.row["shift"][:, None] > 0))}
        return {"x": s.masked_fill(block.row["shift"][:, None] <= 0, -torch.inf).amax(1)}

    found = statistics(comparison(data), {"x": kind("rows")}, tile)["x"]
    dead = data["row"] <= 0
    assert dead.any()
    assert (found[dead] == -torch.inf).all()
    found[~dead].sum().backward()
    assert torch.isfinite(data["rows"].grad).all()
    assert not data["rows"].grad[dead].any()


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("reduction", ["sum", "values"])
def test_row_local_gradients_reach_every_operand(reduction):
    def rows(tile):
        s = tile_scores(tile)
        return softplus(masked_logsumexp(s, tile.target.negative)) * tile.row["shift"], tile.row["shift"] > -0.5

    found = {}
    for path in ("streamed", "dense"):
        data = batch()
        if reduction == "sum":
            value, count = row_local(comparison(data), rows, path=path)
            assert count == (data["row"] > -0.5).sum()
        else:
            values, counted = row_values(comparison(data), rows, path)
            assert torch.equal(counted, data["row"].detach() > -0.5)
            value = (values * torch.arange(11)).sum()
        value.backward()
        found[path] = {name: leaf.grad for name, leaf in data.items()}
        assert all(gradient.any() for gradient in found[path].values())
    for name, gradient in found["dense"].items():
        torch.testing.assert_close(found["streamed"][name], gradient, rtol=1e-11, atol=1e-11, msg=name)


def test_masked_logsumexp_against_torch_and_finite_differences():
    g = torch.Generator().manual_seed(1)
    values, mask = points(5, g), torch.rand(5, 6, generator=g) < 0.5
    mask[2] = False
    expected = values.masked_fill(~mask, -torch.inf).logsumexp(1)
    torch.testing.assert_close(masked_logsumexp(values, mask), expected)
    values.requires_grad_()
    kept = mask.any(1)
    assert torch.autograd.gradcheck(lambda v: masked_logsumexp(v, mask)[kept], values)
    masked_logsumexp(values, mask)[kept].sum().backward()
    assert not values.grad[2].any()


def test_segments():
    values = torch.tensor([1.0, 2.0, 1000.0, 3.0, -1000.0], dtype=torch.float64)
    segments = torch.tensor([0, 0, 2, 2, 4])
    torch.testing.assert_close(
        segment_sum(values, segments, 5), torch.tensor([3.0, 0, 1003, 0, -1000], dtype=torch.float64)
    )
    expected = [torch.logsumexp(values[segments == i], 0) if (segments == i).any() else -torch.inf for i in range(5)]
    torch.testing.assert_close(segment_logsumexp(values, segments, 5), torch.tensor(expected, dtype=torch.float64))


def test_softplus_keeps_its_digits():
    values = torch.tensor([-700.0, -30.0, 0.0, 21.0, 30.0, 700.0], dtype=torch.float64)
    exact = torch.logaddexp(values, torch.zeros_like(values))
    torch.testing.assert_close(softplus(values), exact, rtol=1e-15, atol=0)

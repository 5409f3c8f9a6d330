"""Streamed, dense, closed form and autograd in the tile are the same function, and so is what autograd does with it."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses.engine import similarity
from tests.losses.cases import able, each, each_scenario, each_variant
from tests.losses.inputs import points, scenarios_for, typical
from tests.losses.outcome import Outcome, assert_same, collect, oracle_rows, outcome

pytestmark = pytest.mark.usefixtures("tiny_tiles")


@each_scenario()
def test_streamed_in_tiny_tiles_equals_dense(case, scenario):
    inputs = scenario(torch.Generator().manual_seed(5))
    dense = outcome(case.build(path="dense"), inputs)
    assert_same(outcome(case.build(), inputs), dense)


@each_variant()
def test_all_options_stream(case, variant):
    inputs = typical(case.capabilities, seed=4)
    assert_same(outcome(case.build(variant), inputs), outcome(case.build(variant, path="dense"), inputs))


@each_scenario([case for case in able("streams") if getattr(case.build(), "rows_with_gradient", None)])
def test_closed_form_equals_autograd_in_the_tile(case, scenario):
    inputs = scenario(torch.Generator().manual_seed(6))
    closed, plain = case.build(), case.build()
    plain.rows_with_gradient = None
    assert_same(outcome(closed, inputs), outcome(plain, inputs))


@each()
def test_the_tile_size_changes_nothing(case, monkeypatch):
    inputs = typical(case.capabilities)
    tiny = outcome(case.build(), inputs)
    monkeypatch.undo()
    assert_same(tiny, outcome(case.build(), inputs))


def _two_sided(case):
    return next((s for s in scenarios_for(case.capabilities) if s.__name__ in ("references", "graded")), None)


@each([case for case in able() if _two_sided(case)])
@pytest.mark.parametrize("side", [0, 1])
def test_one_side_alone_gets_its_gradient(case, side):
    inputs = _two_sided(case)(torch.Generator().manual_seed(3))
    wanted = inputs.floats[side : side + 1]
    found = outcome(case.build(), inputs, wanted=wanted)
    dense = outcome(case.build(path="dense"), inputs, wanted=wanted)
    assert set(inputs.floats) & set(found.gradients) == set(wanted)
    assert_same(found, dense)


@each([case for case in able() if any(True for _ in case.build().parameters())])
def test_parameters_alone_get_their_gradient(case):
    inputs = typical(case.capabilities)
    found = outcome(case.build(), inputs, wanted=())
    dense = outcome(case.build(path="dense"), inputs, wanted=())
    assert found.gradients.keys() == dict(case.build().named_parameters()).keys()
    assert_same(found, dense)


@each()
@pytest.mark.parametrize("how", ["no_grad", "detached"])
def test_no_gradient_work_without_need(case, how, monkeypatch):
    def refuse(*_):
        raise AssertionError("a gradient was formed that nobody asked for")

    for walk in (similarity._DotWalk, similarity._NormalisedDotWalk, similarity._EuclideanWalk):
        monkeypatch.setattr(walk, "pull", refuse)
    inputs, loss = typical(case.capabilities), case.build()
    expected = inputs.fresh().call(case.build(path="dense")).detach()
    if how == "no_grad":
        with torch.no_grad():
            value = inputs.fresh().call(loss)
    else:
        loss.requires_grad_(False)
        value = inputs.call(loss)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@each()
def test_backward_twice_on_a_retained_graph(case):
    inputs, loss = typical(case.capabilities).fresh(), case.build()
    value = inputs.call(loss)
    value.backward(retain_graph=True)
    once = collect(value, inputs, dict(loss.named_parameters()))
    value.backward()
    twice = collect(value, inputs, dict(loss.named_parameters()))
    assert_same(twice, Outcome(once.value, {name: 2 * g for name, g in once.gradients.items()}))


@each()
def test_the_gradient_scales_with_the_loss(case):
    inputs, loss = typical(case.capabilities), case.build()
    scaled = inputs.fresh()
    (scaled.call(loss) * 1000).backward()
    found = collect(torch.zeros(()), scaled, dict(loss.named_parameters()))
    once = outcome(case.build(), inputs)
    assert_same(found, Outcome(torch.zeros(()), {name: 1000 * g for name, g in once.gradients.items()}))


@each(able("unreduced"))
def test_unreduced_values_average_to_the_mean(case):
    inputs = typical(case.capabilities)
    values = inputs.call(case.build(reduction="none"))
    mean = inputs.call(case.build())
    rows, _, _ = oracle_rows(case, 0, case.build(), inputs)
    counted = [value is not None for value in rows]
    assert values.shape == (len(rows),)
    assert not values[~torch.tensor(counted)].any()
    torch.testing.assert_close(values.sum() / sum(counted), mean, rtol=1e-12, atol=1e-12)


@each(able("unreduced"))
def test_unreduced_gradient_with_random_cotangents(case):
    inputs = typical(case.capabilities)
    count = len(inputs.call(case.build(reduction="none")))
    cotangent = torch.randn(count, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found = outcome(case.build(reduction="none"), inputs, cotangent)
    dense = outcome(case.build(reduction="none", path="dense"), inputs, cotangent)
    assert_same(found, dense)


@each()
def test_inside_a_larger_graph(case):
    def network_gradient(path):
        inputs, loss = typical(case.capabilities), case.build(path=path)
        generator = torch.Generator().manual_seed(1)
        weight = points(6, generator).requires_grad_()
        for name in inputs.leaves():
            setattr(inputs, name, torch.tanh(getattr(inputs, name) @ weight))
        (inputs.call(loss).exp() + 3 * inputs.call(loss) + weight.square().sum()).backward()
        return weight.grad

    torch.testing.assert_close(network_gradient("streamed"), network_gradient("dense"), rtol=1e-9, atol=1e-9)


@each()
def test_every_backward_runs_in_full_precision_inside_autocast(case):
    inputs = typical(case.capabilities).fresh(torch.float32)
    loss = case.build(dtype=torch.float32)
    plain = outcome(loss, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome(loss, inputs)
    assert_same(mixed, plain, tolerance=1e-6)

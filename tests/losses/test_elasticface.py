"""ElasticFace: given margins, the rule of the plus forms, and the draws."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses import CosFaceLoss, ElasticFaceLoss
from nearfar.losses.elasticface import _by_rank
from tests.losses.inputs import CLASSES, DIM, LabelInputs
from tests.losses.outcome import assert_same, collect, mean_of, outcome
from tests.losses.test_heads import LABELS, X, batch, with_proxies
from tests.oracles.losses import elasticface

ARC = torch.tensor([0.48, 0.50, 0.52, 0.46], dtype=torch.float64)
COS = torch.tensor([0.33, 0.35, 0.37, 0.31], dtype=torch.float64)


def give(loss, margins):
    """The loss with these margins in place of drawn ones."""
    loss.draw_margins = lambda count: margins[:count]
    return loss


@pytest.mark.parametrize(
    ("options", "margins", "expected"),
    [
        ({}, ARC, 10.511856),
        ({"scale": 8}, ARC, 1.368029),
        ({"plus": True}, ARC, 10.511948),
        ({"plus": True, "scale": 8}, ARC, 1.395093),
        ({"variant": "cos"}, COS, 8.8),
        ({"variant": "cos", "scale": 8}, COS, 1.129321),
        ({"variant": "cos", "scale": 8, "plus": True}, COS, 1.142140),
    ],
)
def test_worked_numbers(options, margins, expected):
    loss = give(with_proxies(ElasticFaceLoss(3, 2, **options)), margins)
    assert loss(X, LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_the_nearest_sample_gets_the_smallest_margin():
    cosine, pool = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.50, 0.52, 0.48])
    known = torch.ones(3, dtype=torch.bool)
    assert _by_rank(pool, cosine, known).tolist() == pytest.approx([0.52, 0.48, 0.50])
    assert _by_rank(pool, cosine, known, published=True).tolist() == pytest.approx([0.50, 0.52, 0.48])


def test_equal_cosines_keep_their_order():
    cosine, pool = torch.tensor([1.0, 0.6, 1.0, 0.6]), torch.tensor([0.48, 0.50, 0.52, 0.46])
    assert _by_rank(pool, cosine, torch.ones(4, dtype=torch.bool)).tolist() == pytest.approx([0.46, 0.50, 0.48, 0.52])


def test_ignored_samples_take_no_margin_from_the_others():
    cosine, pool = torch.tensor([0.2, 0.95, 0.9, 0.5]), torch.tensor([0.50, 0.10, 0.52, 0.48])
    known = torch.tensor([True, False, True, True])
    assert _by_rank(pool, cosine, known)[known].tolist() == pytest.approx([0.52, 0.48, 0.50])


@pytest.mark.parametrize("variant", ["arc", "cos"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("path", ["streamed", "dense"])
@pytest.mark.parametrize("ignored", [False, True])
def test_equals_the_naive_loop_with_drawn_margins(variant, plus, path, ignored):
    inputs = batch(5)
    if ignored:
        inputs.labels[2:5] = -1
    options = {"variant": variant, "plus": plus, "sigma": 0.3, "margin": 0.4, "scale": 16}
    margins = ElasticFaceLoss(CLASSES, DIM, seed=3, **options).draw_margins(len(inputs.labels))
    assert margins.std() > 0.1
    loss = ElasticFaceLoss(CLASSES, DIM, seed=3, path=path, **options).double()
    found, expected = outcome(loss, inputs), inputs.fresh()
    parameters = {"weight": loss.weight.detach().clone().requires_grad_()}
    value = mean_of(elasticface.oracle(expected, options, parameters, margins.tolist()))
    value.backward()
    assert_same(found, collect(value, expected, parameters))


@pytest.mark.parametrize(
    ("options", "margin", "sigma"),
    [
        ({}, 0.5, 0.05),
        ({"plus": True}, 0.5, 0.0175),
        ({"variant": "cos"}, 0.35, 0.05),
        ({"variant": "cos", "plus": True}, 0.35, 0.02),
        ({"margin": 0.2, "sigma": 0.0}, 0.2, 0.0),
    ],
)
def test_defaults_of_the_forms(options, margin, sigma):
    loss = ElasticFaceLoss(3, 2, **options)
    assert (loss.margin, loss.sigma) == (margin, sigma)


def test_margins_are_normal_and_differ_from_step_to_step():
    loss = ElasticFaceLoss(3, 2, seed=1)
    first, second = loss.draw_margins(20_000), loss.draw_margins(20_000)
    assert not torch.equal(first, second)
    assert first.mean().item() == pytest.approx(0.5, abs=0.002)
    assert first.std().item() == pytest.approx(0.05, rel=0.03)
    assert ((first - 0.5).abs() < 0.05).double().mean().item() == pytest.approx(0.6827, abs=0.015)


def test_evaluation_draws_nothing():
    loss = ElasticFaceLoss(CLASSES, DIM).double()
    inputs = batch()
    inputs.call(loss.eval())
    assert loss.draws.steps == 0
    inputs.call(loss.train())
    assert loss.draws.steps == 1


def test_without_spread_it_is_cosface():
    inputs = batch()
    elastic = ElasticFaceLoss(CLASSES, DIM, "cos", sigma=0).double()
    fixed = CosFaceLoss(CLASSES, DIM).double()
    fixed.weight.data = elastic.weight.data.clone()
    assert_same(outcome(elastic, inputs), outcome(fixed, inputs))


def test_an_angle_may_pass_pi():
    loss = give(with_proxies(ElasticFaceLoss(3, 2, scale=1, reduction="none")), torch.tensor([2.0]).double())
    x = torch.tensor([[-0.6, 0.8]], dtype=torch.float64)
    own = torch.cos(torch.arccos(torch.tensor(-0.6, dtype=torch.float64)) + 2.0)
    logits = torch.stack([own, *(x @ loss.weight.detach().T)[0, 1:]])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(0))
    torch.testing.assert_close(LabelInputs(x, torch.tensor([0])).call(loss)[0].detach(), expected)

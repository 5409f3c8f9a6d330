"""AdaFace: its moving mean and deviation, and the lengths it reads the quality from."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses import AdaFaceLoss
from tests.losses.cases import BY_NAME
from tests.losses.inputs import CLASSES, DIM, LabelInputs
from tests.losses.outcome import assert_same, collect, mean_of, outcome
from tests.losses.test_heads import LABELS, X, batch, with_proxies
from tests.oracles.losses import adaface

RAW = X * torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"ema": 1}, 9.447416), ({"ema": 1, "scale": 8}, 1.247756), ({}, 9.599786)],
)
def test_worked_numbers(options, expected):
    loss = with_proxies(AdaFaceLoss(3, 2, **options))
    assert loss(RAW, LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_worked_state():
    loss = with_proxies(AdaFaceLoss(3, 2))
    assert (loss.mean.item(), loss.std.item()) == (20, 100)
    loss(RAW, LABELS)
    assert loss.mean.item() == pytest.approx(20.05, abs=1e-9)
    assert loss.std.item() == pytest.approx(99.129099, abs=1e-6)
    whole = with_proxies(AdaFaceLoss(3, 2, ema=1))
    quality = whole._quality(RAW, torch.ones(4, dtype=torch.bool))
    expected = torch.tensor([-0.386879, -0.128960, 0.128960, 0.386879]).double()
    torch.testing.assert_close(quality, expected, rtol=0, atol=3e-6)  # the first and last are 0.3868811


@pytest.mark.parametrize("path", ["streamed", "dense"])
@pytest.mark.parametrize("ema", [0.01, 0.5, 1.0])
def test_three_steps_equal_the_naive_loop(path, ema):
    case, state = BY_NAME["adaface"], (20.0, 100.0)
    loss = case.build(path=path, ema=ema, h=2.0)
    options = {**case.full_options(), "ema": ema, "h": 2.0}
    for seed in range(3):
        inputs = batch(seed)
        inputs.labels[seed] = -1
        found, expected = outcome(loss, inputs), inputs.fresh()
        parameters = {"weight": loss.weight.detach().clone().requires_grad_()}
        value = mean_of(adaface.oracle(expected, options, parameters, state))
        value.backward()
        assert_same(found, collect(value, expected, parameters))
        state = adaface.moved_state(inputs, ema, *state)
        assert (loss.mean.item(), loss.std.item()) == pytest.approx(state, rel=1e-12)


def test_evaluation_leaves_the_state_alone():
    loss = with_proxies(AdaFaceLoss(3, 2)).eval()
    loss(F.normalize(RAW), LABELS)  # and does not care about the lengths
    loss.get_logits(RAW)
    assert (loss.mean.item(), loss.std.item()) == (20, 100)


def test_the_state_is_saved():
    loss = with_proxies(AdaFaceLoss(3, 2, ema=0.5))
    loss(RAW, LABELS)
    other = AdaFaceLoss(3, 2, ema=0.5).double()
    other.load_state_dict(loss.state_dict())
    assert other.mean == loss.mean != 20
    assert other.std == loss.std != 100


def test_one_sample_moves_the_mean_only():
    loss = with_proxies(AdaFaceLoss(3, 2, ema=0.5))
    value = loss(RAW[:1], LABELS[:1])
    assert torch.isfinite(value)
    assert loss.mean.item() == 15
    assert loss.std.item() == 100


def test_no_sample_moves_nothing():
    loss = with_proxies(AdaFaceLoss(3, 2, ema=0.5))
    loss(RAW, torch.full((4,), -1))
    assert (loss.mean.item(), loss.std.item()) == (20, 100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 16])
def test_unit_embeddings_are_refused(dtype, count):
    loss, inputs = AdaFaceLoss(CLASSES, DIM), batch()
    unit = F.normalize(inputs.embeddings).to(dtype)[:count]
    with pytest.raises(InputError, match=r"raw features, from before the final Normalize"):
        loss(unit, inputs.labels[:count])


def test_embeddings_of_another_constant_length_are_refused():
    inputs = batch()
    with pytest.raises(InputError, match="have length 7"):
        AdaFaceLoss(CLASSES, DIM)(7 * F.normalize(inputs.embeddings).float(), inputs.labels)


def test_copies_of_one_sample_are_no_constant_length():
    value = AdaFaceLoss(3, 2)(RAW[:1].float().expand(4, 2), LABELS)
    assert torch.isfinite(value)


def test_lengths_get_no_gradient_beyond_that_of_the_direction():
    inputs = LabelInputs(RAW.clone().requires_grad_(), LABELS)
    inputs.call(with_proxies(AdaFaceLoss(3, 2, ema=1))).backward()
    along = (inputs.embeddings.grad * inputs.embeddings).sum(1)
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_weights_start_with_unit_length():
    lengths = AdaFaceLoss(20, 7).weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(20))

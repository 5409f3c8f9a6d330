"""Margin heads: worked numbers, parity with pytorch-metric-learning, its faults 8, 9 and 13, and evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses import (
    AdaFaceLoss,
    ArcFaceLoss,
    CircleHeadLoss,
    CosFaceLoss,
    ElasticFaceLoss,
    NormalizedSoftmaxLoss,
    SubCenterArcFaceLoss,
)
from nearfar.losses.heads import ClassHead, add_angle, check_radians
from tests.losses.cases import CASES
from tests.losses.inputs import CLASSES, DIM, LabelInputs, plain
from tests.losses.outcome import assert_same, oracle_outcome, outcome

HEADS = [case for case in CASES if isinstance(case.build(), ClassHead)]
each_head = pytest.mark.parametrize("case", HEADS, ids=lambda case: case.name)

X = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1])
PROXIES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]], dtype=torch.float64)


def with_proxies(loss):
    loss = loss.double()
    loss.weight.data = PROXIES.clone()
    return loss


def batch(seed: int = 0, dim: int = DIM) -> LabelInputs:
    return plain(torch.Generator().manual_seed(seed), dim)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CircleHeadLoss(3, 2, m=0.25, gamma=2), 1.237915),
        (CircleHeadLoss(3, 2, m=0.4, gamma=80), 9.773289),
        (CircleHeadLoss(3, 2), 49.44),
        (NormalizedSoftmaxLoss(3, 2), 1.004539),
        (NormalizedSoftmaxLoss(3, 2, temperature=1 / 8), 0.448196),
        (CosFaceLoss(3, 2, margin=0.4, scale=8), 1.252212),
    ],
)
def test_worked_numbers(loss, expected):
    assert with_proxies(loss)(X, LABELS).item() == pytest.approx(expected, abs=1e-6)


def test_the_floor_of_the_normalised_softmax():
    simplex = torch.eye(10, dtype=torch.float64) - 0.1  # ten unit vectors as far apart as can be, after normalising
    loss = NormalizedSoftmaxLoss(10, 10, temperature=1).double()
    loss.weight.data = simplex.clone()
    assert loss(simplex, torch.arange(10)).item() == pytest.approx(1.376935, abs=1e-6)


# Parity with pytorch-metric-learning

PARITY = [
    (pml.ArcFaceLoss, ArcFaceLoss, {}),
    (pml.ArcFaceLoss, ArcFaceLoss, {"margin": 110, "scale": 8}),
    (pml.CosFaceLoss, CosFaceLoss, {}),
    (pml.CosFaceLoss, CosFaceLoss, {"margin": 0.1, "scale": 4}),
    (pml.NormalizedSoftmaxLoss, NormalizedSoftmaxLoss, {}),
    (pml.NormalizedSoftmaxLoss, NormalizedSoftmaxLoss, {"temperature": 0.5}),
    (pml.SubCenterArcFaceLoss, SubCenterArcFaceLoss, {}),
    (pml.SubCenterArcFaceLoss, SubCenterArcFaceLoss, {"sub_centers": 2, "margin": 20, "scale": 8}),
]


@pytest.mark.parametrize(("theirs", "ours", "options"), PARITY)
def test_equals_pytorch_metric_learning(theirs, ours, options):
    their = theirs(num_classes=CLASSES, embedding_size=DIM, **options)
    their.W.data = torch.randn(their.W.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    our = ours(CLASSES, DIM, **options).double().load_pml_state_dict(their.state_dict())
    inputs = batch()
    found, mirror = outcome(our, inputs), inputs.fresh()
    value = their(mirror.embeddings, mirror.labels)
    value.backward()
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gradients["embeddings"], mirror.embeddings.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.gradients["weight"], their.W.grad.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our.get_logits(X.new_ones(2, DIM)), their.get_logits(X.new_ones(2, DIM)))


@pytest.mark.parametrize("ours", [ArcFaceLoss, CosFaceLoss])
def test_weights_start_as_there(ours):
    assert ours(2000, 8).weight.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("state", [{}, {"W": torch.zeros(3, 5)}, {"W": torch.zeros(5, 4)}])
def test_weights_that_do_not_fit_are_refused(state):
    with pytest.raises(InputError, match="W"):
        CosFaceLoss(3, 5).load_pml_state_dict(state)


@each_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_fault_8_a_sample_on_its_class_centre_has_a_finite_gradient(case, dtype, path):
    loss = case.build(dtype=dtype, path=path)
    inputs = batch().fresh(dtype)
    centres = loss.weight.detach()[:: loss.sub_centers] * 3
    with torch.no_grad():
        inputs.embeddings[:] = centres[inputs.labels]
        inputs.embeddings[0] *= -1  # the other end, where the slope of arccos is infinite as well
        inputs.embeddings[1] *= 2
    found = outcome(loss, inputs)
    assert torch.isfinite(found.value)
    for name, gradient in found.gradients.items():
        assert torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("angle", [0.5, -0.4, 2.0])
def test_the_gradient_through_arccos_is_true_up_to_the_ends(angle):
    cosine = torch.tensor([-1 + 1e-9, -0.7, 0.0, 0.3, 0.999999, 1 - 1e-12], dtype=torch.float64, requires_grad=True)
    exact = cosine.detach().clone().requires_grad_()
    moved, expected = add_angle(cosine, angle), torch.cos(torch.arccos(exact) + angle)
    moved.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cosine.grad, exact.grad, rtol=1e-3, atol=0)
    ends = torch.tensor([1.0, -1.0, 1.0000001], requires_grad=True)
    at_ends = add_angle(ends, angle)
    at_ends.sum().backward()
    torch.testing.assert_close(at_ends, torch.tensor([1.0, -1.0, 1.0]) * math.cos(angle), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ends.grad, torch.full((3,), math.cos(angle)))


@each_head
def test_fault_9_a_half_precision_batch_leaves_the_weights_in_float32(case):
    loss = case.build(dtype=torch.float32)
    before = loss.weight.detach().clone()
    inputs = batch().fresh(torch.bfloat16)
    inputs.call(loss).backward()
    with torch.autocast("cpu", torch.bfloat16):
        value = inputs.call(loss)
        assert loss.get_logits(inputs.embeddings).dtype == torch.float32
    assert value.dtype == loss.weight.dtype == loss.weight.grad.dtype == torch.float32
    assert torch.equal(loss.weight, before)


def test_fault_13_sizes_may_be_positional():
    assert SubCenterArcFaceLoss(8, 16).weight.shape == (24, 16)


# Evaluation, ignored samples, narrower embeddings


@each_head
def test_evaluation_has_no_margin(case):
    loss, inputs = case.build(sample_rate=0.5).eval(), batch()
    logits = loss.get_logits(inputs.embeddings)
    assert logits.shape == (len(inputs.labels), CLASSES)
    expected = F.cross_entropy(logits, inputs.labels)
    found = outcome(loss, inputs)
    torch.testing.assert_close(found.value, expected.detach(), rtol=1e-12, atol=1e-12)
    assert found.gradients["weight"].abs().sum(1).gt(0).all()  # no class is left out


@each_head
def test_logits_are_scaled_cosines(case):
    loss, inputs = case.build(), batch()
    cosine = F.normalize(inputs.embeddings) @ F.normalize(loss.weight).T
    nearest = cosine.unflatten(1, (CLASSES, -1)).amax(2)
    torch.testing.assert_close(loss.get_logits(inputs.embeddings), loss.scale * nearest)


@each_head
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_a_label_of_minus_one_leaves_its_sample_out(case, path):
    inputs = batch()
    keep = torch.ones(len(inputs.labels), dtype=torch.bool)
    keep[[0, 5, 15]] = False
    fewer = LabelInputs(inputs.embeddings[keep], inputs.labels[keep])
    some = LabelInputs(inputs.embeddings, inputs.labels.masked_fill(~keep, -1))
    found, expected = outcome(case.build(path=path), some), outcome(case.build(path=path), fewer)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.gradients["weight"], expected.gradients["weight"])
    torch.testing.assert_close(found.gradients["embeddings"][keep], expected.gradients["embeddings"])
    assert not found.gradients["embeddings"][~keep].any()
    values = some.call(case.build(path=path, reduction="none"))
    assert not values[~keep].any()


@each_head
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_a_batch_without_classes_gives_a_connected_zero(case, path):
    inputs = LabelInputs(batch().embeddings, torch.full((16,), -1)).fresh()
    loss = case.build(path=path)
    value = inputs.call(loss)
    value.backward()
    assert value == 0
    assert not inputs.embeddings.grad.any()
    assert not loss.weight.grad.any()


@each_head
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_one_class_alone_gives_zero(case, path):
    loss = case.build(num_classes=1, path=path)
    inputs = batch().fresh()
    value = loss(inputs.embeddings, torch.zeros(16, dtype=torch.long))
    value.backward()
    assert value == 0
    assert torch.isfinite(inputs.embeddings.grad).all()
    assert torch.isfinite(loss.weight.grad).all()


@each_head
def test_narrower_embeddings_use_the_first_dimensions(case):
    loss, inputs = case.build(), batch(dim=4)
    narrow = case.build(embedding_size=4)
    narrow.weight.data = loss.weight.data[:, :4].clone()
    found, expected = outcome(loss, inputs), outcome(narrow, inputs)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.gradients["weight"][:, :4], expected.gradients["weight"])
    assert not found.gradients["weight"][:, 4:].any()
    torch.testing.assert_close(loss.get_logits(inputs.embeddings), narrow.get_logits(inputs.embeddings))


@each_head
@pytest.mark.parametrize("embedding_size", [3, 16, 40])
def test_batches_larger_and_smaller_than_the_embedding(case, embedding_size, tiny_tiles):
    """16 samples: above that width the tiles of similarities wait where the gradient will be."""
    inputs = batch(dim=embedding_size)
    loss = case.build(dim=embedding_size)
    assert_same(outcome(loss, inputs), oracle_outcome(case, 0, loss, inputs, embedding_size))


@each_head
def test_the_gradient_adds_to_the_one_that_is_there(case):
    loss, inputs = case.build(), batch().fresh()
    inputs.call(loss).backward()
    once = loss.weight.grad.clone()
    inputs.call(loss).backward()
    torch.testing.assert_close(loss.weight.grad, 2 * once)


# Settings


@pytest.mark.parametrize("build", [CosFaceLoss, ElasticFaceLoss, AdaFaceLoss])
def test_margins_in_degrees_are_refused_but_for_arcface(build):
    with pytest.raises(InputError, match=r"radians.*0\.4992"):
        build(3, 2, margin=28.6)
    assert ArcFaceLoss(3, 2).margin == 28.6
    for margin in (-1, 181, math.nan):
        with pytest.raises(InputError, match="degrees"):
            ArcFaceLoss(3, 2, margin=margin)


@pytest.mark.parametrize("value", [-0.1, 3.2, math.nan, math.inf])
def test_radians_lie_between_zero_and_pi(value):
    with pytest.raises(InputError, match="margin"):
        check_radians("margin", value)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: CosFaceLoss(0, 2), "num_classes"),
        (lambda: CosFaceLoss(2, 0), "embedding_size"),
        (lambda: CosFaceLoss(2, 2, scale=0), "scale"),
        (lambda: CosFaceLoss(2, 2, sample_rate=0), "sample_rate"),
        (lambda: CosFaceLoss(2, 2, sample_rate=1.5), "sample_rate"),
        (lambda: CosFaceLoss(9, 2, sample_rate=0.1), "leaves no class"),
        (lambda: CosFaceLoss(9, 2, sample_rate=0.5, seed=-1), "seed"),
        (lambda: NormalizedSoftmaxLoss(2, 2, temperature=0), "temperature"),
        (lambda: SubCenterArcFaceLoss(2, 2, sub_centers=0), "sub_centers"),
        (lambda: ElasticFaceLoss(2, 2, "angle"), "variant"),
        (lambda: ElasticFaceLoss(2, 2, sigma=-0.1), "sigma"),
        (lambda: AdaFaceLoss(2, 2, ema=1.1), "ema"),
    ],
)
def test_unusable_settings_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()


def test_a_learned_scale_learns():
    loss = with_proxies(NormalizedSoftmaxLoss(3, 2, temperature=1, learned_scale=True))
    optimiser = torch.optim.SGD([loss.log_scale], lr=0.5)
    before = loss(X, torch.tensor([0, 1, 1, 1])).item()
    for _ in range(20):
        optimiser.zero_grad()
        value = loss(X, torch.tensor([0, 1, 1, 1]))
        value.backward()
        optimiser.step()
    assert value.item() < before
    assert loss.current_scale().item() > 1

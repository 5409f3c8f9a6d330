"""Class sampling: which classes, the softmax over them, and where the gradient goes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.losses import CosFaceLoss, ElasticFaceLoss
from nearfar.losses.partial_fc import ClassSampler, take_classes
from tests.losses.inputs import CLASSES, LabelInputs
from tests.losses.outcome import assert_same, outcome
from tests.losses.test_heads import LABELS, X, batch, each_head, with_proxies


def test_worked_number_on_two_of_three_classes():
    loss = with_proxies(CosFaceLoss(3, 2, margin=0.4, scale=8, sample_rate=0.67))
    assert loss.sampler.sample_size == 2  # just the two classes of the batch
    found = outcome(loss, LabelInputs(X, LABELS))
    assert found.value.item() == pytest.approx(1.206231, abs=1e-6)
    assert not found.gradients["weight"][2].any()
    assert found.gradients["weight"][:2].any(1).all()


def test_worked_samples():
    sampler = ClassSampler(10, 0.4, seed=0)
    for _ in range(20):
        classes = sampler(torch.tensor([7, 2, 7])).tolist()
        assert len(classes) == 4
        assert {2, 7} <= set(classes)
        assert classes == sorted(set(classes))
    assert sampler(torch.tensor([4, 3, 2, 1, 0, 0])).tolist() == [0, 1, 2, 3, 4]


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.lists(st.integers(-1, 59), max_size=40),
    st.integers(0, 5),
)
def test_any_sample_is_the_batch_and_distinct_others(num_classes, size, labels, seed):
    size = min(size, num_classes)
    labels = [label for label in labels if label < num_classes]
    classes = ClassSampler(num_classes, size / num_classes, seed)(torch.tensor(labels, dtype=torch.long)).tolist()
    positive = {label for label in labels if label >= 0}
    assert classes == sorted(set(classes))
    assert positive <= set(classes)
    assert len(classes) == max(size, len(positive))
    assert all(0 <= c < num_classes for c in classes)


def test_negatives_are_uniform():
    sampler = ClassSampler(20, 0.3, seed=3)
    counts = torch.zeros(20)
    steps = 4000
    for _ in range(steps):
        counts[sampler(torch.tensor([5, 5]))] += 1
    assert counts[5] == steps
    others = counts[torch.arange(20) != 5]
    expected = steps * 5 / 19
    deviation = (expected * (1 - 5 / 19)) ** 0.5
    assert ((others - expected).abs() < 4.5 * deviation).all()


@pytest.mark.parametrize(("rate", "size"), [(0.29, 29), (0.1, 10), (0.999, 99), (1 / 3, 33), (0.57, 57)])
def test_the_sample_is_the_floor_of_the_share(rate, size):
    assert ClassSampler(100, rate, seed=0).sample_size == size


@each_head
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_a_sampled_step_is_the_full_step_on_the_sampled_classes(case, path):
    inputs = batch()
    inputs.labels = inputs.labels % 3 * 4  # classes 0, 4 and 8
    loss = case.build(sample_rate=0.6, seed=4, path=path)
    classes = copy.deepcopy(loss.sampler)(inputs.labels)
    assert len(classes) == 5
    small = case.build(num_classes=5, path=path)
    rows = (classes[:, None] * loss.sub_centers + torch.arange(loss.sub_centers)).flatten()
    small.weight.data = loss.weight.data[rows].clone()
    found = outcome(loss, inputs)
    expected = outcome(small, LabelInputs(inputs.embeddings, torch.searchsorted(classes, inputs.labels)))
    spread = torch.zeros_like(loss.weight).index_copy_(0, rows, expected.gradients.pop("weight"))
    assert torch.equal(found.gradients["weight"].any(1), spread.any(1))
    expected.gradients["weight"] = spread
    assert_same(found, expected)


@each_head
def test_samples_without_a_class_may_be_in_the_batch(case):
    inputs = batch()
    inputs.labels = (inputs.labels % 3 * 4).masked_fill(inputs.labels == 1, -1)
    loss = case.build(sample_rate=0.6)
    found = outcome(loss, inputs)
    assert not found.gradients["embeddings"][inputs.labels < 0].any()
    assert found.gradients["embeddings"][inputs.labels >= 0].any(1).all() or case.name == "adaface"


def test_only_the_sampled_rows_of_the_weights_are_read():
    loss = CosFaceLoss(CLASSES, 6, sample_rate=0.6, seed=1).double()
    inputs = batch()
    inputs.labels = inputs.labels % 3
    classes = copy.deepcopy(loss.sampler)(inputs.labels)
    others = torch.ones(CLASSES, dtype=torch.bool).index_fill_(0, classes, False)
    loss.weight.data[others] = torch.nan
    found = outcome(loss, inputs)
    assert torch.isfinite(found.value)
    assert not found.gradients["weight"][others].any()


def test_steps_differ_and_a_saved_state_repeats_them():
    inputs = batch()
    inputs.labels = inputs.labels % 2

    def values(loss, steps):
        return [inputs.call(loss).item() for _ in range(steps)]

    def build(seed):
        loss = ElasticFaceLoss(CLASSES, 6, sample_rate=0.5, seed=seed).double()
        loss.weight.data = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(2)).double()
        return loss

    loss = build(7)
    first = values(loss, 3)
    assert len(set(first)) == 3
    state = copy.deepcopy(loss.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())  # every format of checkpoints holds them
    later = values(loss, 3)
    resumed = build(7)
    resumed.load_state_dict(state)
    assert values(resumed, 3) == later
    assert values(build(7), 3) == first
    assert values(build(8), 3) != first


def test_the_global_generators_are_left_alone():
    before = torch.random.get_rng_state()
    ClassSampler(50, 0.2, seed=0)(torch.tensor([3]))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_of_the_taken_rows(dtype):
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    classes = torch.tensor([0, 2, 5])
    taken, position = take_classes(weight, torch.tensor([5, -1, 0, 2]), classes)
    assert torch.equal(taken, weight[classes])
    assert position.tolist() == [2, -1, 0, 1]
    taken.backward(torch.ones_like(taken))
    assert weight.grad.dtype == dtype
    assert torch.equal(weight.grad, torch.tensor([1, 0, 1, 0, 0, 1])[:, None].expand(6, 3).to(dtype))


def test_the_dense_path_has_a_second_derivative_through_the_sample():
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    call = lambda w: take_classes(w, torch.tensor([5]), torch.tensor([1, 5]))[0].square().sum()  # noqa: E731
    assert torch.autograd.gradgradcheck(call, weight)


# Sparse gradients


@each_head
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_a_sparse_gradient_is_the_dense_one_without_the_zeros(case, path):
    inputs = batch()
    inputs.labels = inputs.labels % 3 * 4
    dense, sparse = (case.build(sample_rate=0.6, seed=4, path=path, sparse_gradient=flag) for flag in (False, True))
    for step in (1, 2):  # the second adds to the first
        values = [inputs.call(loss) for loss in (dense, sparse)]
        assert torch.equal(*values)
        for value in values:
            value.backward()
        gradient = sparse.weight.grad
        assert gradient.layout == torch.sparse_coo
        assert gradient.shape == sparse.weight.shape
        assert gradient._nnz() <= 5 * step * sparse.sub_centers
        torch.testing.assert_close(gradient.to_dense(), dense.weight.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "optimiser", [lambda p: torch.optim.SGD(p, lr=0.5), lambda p: torch.optim.SparseAdam(p, lr=0.5)]
)
def test_an_optimiser_moves_the_sampled_rows_only(optimiser):
    inputs = batch()
    inputs.labels = inputs.labels % 3
    loss = CosFaceLoss(CLASSES, 6, sample_rate=0.6, seed=1, sparse_gradient=True).double()
    before, classes = loss.weight.detach().clone(), copy.deepcopy(loss.sampler)(inputs.labels)
    step = optimiser([loss.weight])
    inputs.call(loss).backward()
    step.step()
    moved = (loss.weight != before).any(1)
    assert moved.nonzero().squeeze(1).tolist() == classes.tolist()


def test_sgd_takes_the_same_steps_either_way():
    weights = []
    for sparse in (False, True):
        loss = CosFaceLoss(CLASSES, 6, sample_rate=0.6, seed=1, sparse_gradient=sparse).double()
        loss.weight.data = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(3)).double()
        optimiser = torch.optim.SGD(loss.parameters(), lr=0.3)
        for seed in range(4):
            inputs = batch(seed)
            inputs.labels = inputs.labels % 3
            optimiser.zero_grad()
            inputs.call(loss).backward()
            optimiser.step()
        weights.append(loss.weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_gradient_has_the_dtype_of_the_weights(dtype):
    inputs = batch().fresh(dtype)
    inputs.labels = inputs.labels % 3
    loss = CosFaceLoss(CLASSES, 6, sample_rate=0.6, sparse_gradient=True).to(dtype)
    inputs.call(loss).backward()
    assert loss.weight.grad.dtype == dtype


@pytest.mark.parametrize("options", [{}, {"sample_rate": 0.6, "gather_across_devices": True}])
def test_a_sparse_gradient_is_refused_where_it_cannot_be(options):
    with pytest.raises(InputError, match=r"sparse_gradient=True .*needs sample_rate below 1 and no gather"):
        CosFaceLoss(CLASSES, 6, sparse_gradient=True, **options)


def test_settings_name_it_where_it_is_on():
    settings = CosFaceLoss(CLASSES, 6, sample_rate=0.6, sparse_gradient=True).settings()
    assert CosFaceLoss(**settings).sparse_gradient
    assert "sparse_gradient" not in CosFaceLoss(CLASSES, 6).settings()

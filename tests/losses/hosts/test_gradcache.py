"""A batch embedded in mini-batches has the loss and the gradients of the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import (
    ArcFaceLoss,
    CircleLoss,
    DecoupledSoftmaxLoss,
    ForSentenceTransformer,
    ThresholdConsistentMarginLoss,
    WeightedSum,
)
from tests.losses.cases import each, of_kind
from tests.losses.hosts.models import DIM, assert_same_gradients, features, gradients, texts, tiny_bert

ROWS = 11
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1, 3, 3, 0])


def run(model, loss, columns, labels, mini_batch_size, factor=1.0):
    """Value and gradients, the loss's own included."""
    host = ForSentenceTransformer(model, copy.deepcopy(loss), mini_batch_size)
    host.zero_grad()
    value = host(features(model, columns), labels)
    value = sum(value.values()) if isinstance(value, dict) else value
    (factor * value).backward()
    return value.detach(), gradients(host)


def assert_cached_equals_uncached(model, loss, columns, labels, factor=1.0):
    value, expected = run(model, loss, columns, labels, None, factor)
    for size in (4, 1, 50):
        found_value, found = run(model, loss, columns, labels, size, factor)
        torch.testing.assert_close(found_value, value, rtol=1e-10, atol=1e-12)
        assert_same_gradients(found, expected)
    return expected


@each(of_kind("labels"))
def test_label_losses(case, bert):
    loss = case.build(dim=DIM)
    found = assert_cached_equals_uncached(tiny_bert(bert), loss, [texts(ROWS, 0)], LABELS, factor=0.125)
    own = {name for name in found if name.startswith("loss.")}
    assert own == {f"loss.{name}" for name, p in loss.named_parameters() if p.requires_grad}


@each(of_kind("documents"))
def test_document_losses_with_hard_negatives(case, bert):
    grades = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(1)).double()
    columns = [texts(ROWS, seed) for seed in range(3)]
    for labels in (None, grades, LABELS):
        assert_cached_equals_uncached(tiny_bert(bert), case.build(dim=DIM), columns, labels)


@pytest.mark.parametrize("factor", [0.25, 65536.0])
def test_own_parameters_are_scaled_as_the_trainer_scales_the_loss(bert, factor):
    model, loss = tiny_bert(bert), ArcFaceLoss(4, DIM).double()
    _, plain = run(model, loss, [texts(ROWS, 0)], LABELS, 3)
    _, scaled = run(model, loss, [texts(ROWS, 0)], LABELS, 3, factor)
    assert plain["loss.weight"].abs().max() > 0
    assert_same_gradients(scaled, {name: factor * value for name, value in plain.items()})


def test_two_batches_before_one_backward_pass(bert):
    model, loss = tiny_bert(bert), ArcFaceLoss(4, DIM).double()
    batches = [texts(ROWS, 0)], [texts(ROWS, 5)]
    expected = [run(model, loss, batch, LABELS, None)[1] for batch in batches]
    host = ForSentenceTransformer(model, loss, 3)
    host.zero_grad()
    first, second = (host(features(model, batch), LABELS) for batch in batches)
    assert all(p.grad is None for p in host.parameters())
    (first + second).backward()
    assert_same_gradients(gradients(host), {name: value + expected[1][name] for name, value in expected[0].items()})


def rows_of(column, begin, end):
    return {key: part[begin:end] if isinstance(part, torch.Tensor) else part for key, part in column.items()}


def test_dropout_is_replayed(bert):
    """The gradient is that of the very masks with which the loss was computed."""
    model, loss = tiny_bert(bert, dropout=0.3), DecoupledSoftmaxLoss()
    columns = [texts(ROWS, seed, words=(4, 4)) for seed in range(2)]  # one length: mini-batches are plain slices
    torch.manual_seed(5)
    value, found = run(model, loss, columns, None, 4)
    model.zero_grad()
    torch.manual_seed(5)
    queries, documents = (
        torch.cat([model(rows_of(column, i, i + 4))["sentence_embedding"] for i in range(0, ROWS, 4)])
        for column in features(model, columns)
    )
    expected = loss(queries, documents)
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    assert_same_gradients(found, {f"model.{n}": g for n, g in gradients(model).items()})
    torch.manual_seed(6)
    other, _ = run(model, loss, columns, None, 4)
    assert (other - value).abs() > 1e-3


def test_evaluation_needs_no_gradient(bert):
    model, loss = tiny_bert(bert), ArcFaceLoss(4, DIM).double()
    with torch.no_grad():
        cached = ForSentenceTransformer(model, loss, 3)(features(model, [texts(ROWS, 0)]), LABELS)
        plain = ForSentenceTransformer(model, loss)(features(model, [texts(ROWS, 0)]), LABELS)
    assert not cached.requires_grad
    torch.testing.assert_close(cached, plain)


def test_half_precision_gradients_do_not_underflow(bert):
    """1e-8 is no float16; times the trainer's loss scale it would have been one."""

    class Tiny(torch.nn.Module):
        def forward(self, embeddings, labels):
            return 1e-8 * embeddings.float().sum()

    model = tiny_bert(bert, dtype=torch.float16)
    _, found = run(model, Tiny(), [texts(ROWS, 0)], LABELS, 4, factor=2.0**24)
    _, expected = run(model, Tiny(), [texts(ROWS, 0)], LABELS, None, factor=2.0**24)
    name = "model.0.model.embeddings.LayerNorm.bias"
    assert expected[name].abs().max() > 0
    torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=1e-2)


def test_parts_of_a_sum_are_logged_and_trained(bert):
    model = tiny_bert(bert)
    arcface = ArcFaceLoss(4, DIM).double()
    loss = WeightedSum({"head": (arcface, 0.5), "margin": (ThresholdConsistentMarginLoss(), 2)})
    assert_cached_equals_uncached(model, loss, [texts(ROWS, 0)], LABELS)
    plain = ForSentenceTransformer(model, loss)(features(model, [texts(ROWS, 0)]), LABELS)
    cached = ForSentenceTransformer(model, loss, 4)(features(model, [texts(ROWS, 0)]), LABELS)
    assert cached.keys() == plain.keys() == {"head", "margin"}
    for name, value in plain.items():
        torch.testing.assert_close(cached[name].detach(), value.detach())


def test_static_models_are_refused():
    from nearfar.data import demo_model

    with pytest.raises(InputError, match="static"):
        ForSentenceTransformer(demo_model(), CircleLoss(), mini_batch_size=8)


def test_mini_batches_hold_at_least_one_row(bert):
    with pytest.raises(InputError, match="mini_batch_size=0 must be at least 1"):
        ForSentenceTransformer(tiny_bert(bert), CircleLoss(), mini_batch_size=0)


def test_the_model_card_states_the_mini_batches(bert):
    host = ForSentenceTransformer(tiny_bert(bert), CircleLoss(), mini_batch_size=8)
    assert host.get_config_dict()["mini_batch_size"] == 8


@pytest.mark.slow
def test_the_trainer_takes_the_same_steps(bert, tmp_path):
    """Gradient accumulation included: two steps of SGD end at the same weights, the head's as well."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    data = Dataset.from_dict({"text": texts(32, 0), "label": [i % 4 for i in range(32)]})
    ends = []
    for size in (None, 3):
        model = tiny_bert(bert, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            host = ForSentenceTransformer(model, ArcFaceLoss(4, DIM), size)
        before = host.loss.weight.detach().clone()
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / str(size)),
            max_steps=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=0.02,
            optim="sgd",
            max_grad_norm=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=host).train()
        assert (host.loss.weight - before).abs().max() > 1e-4
        ends.append({name: p.detach() for name, p in host.named_parameters()})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")

"""Through sentence-transformers' trainer: what it logs, what the model card says, and every shape of data set."""

from __future__ import annotations

import math

import pytest
import torch

from nearfar.losses import (
    AdaFaceLoss,
    ArcFaceLoss,
    CircleLoss,
    DecoupledSoftmaxLoss,
    ForSentenceTransformer,
    ThresholdConsistentMarginLoss,
    WeightedSum,
)
from tests.losses.cases import CASES, each, of_kind
from tests.losses.hosts.models import DIM, texts, tiny_bert

ROWS, CLASSES = 32, 4
GRADES = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(0))


def columns_of(kind: str) -> dict[str, list]:
    classes = [row % CLASSES for row in range(ROWS)]
    pairs = {"anchor": texts(ROWS, 0), "positive": texts(ROWS, 1)}
    return {
        "labels": {"text": texts(ROWS, 0), "label": classes},
        "labelled pairs": {**pairs, "label": classes},
        "negatives": {**pairs, "negative_1": texts(ROWS, 2), "negative_2": texts(ROWS, 3)},
        "graded negatives": {**pairs, "negative_1": texts(ROWS, 2), "label": GRADES.tolist()},
    }[kind]


def train(model, loss, kind: str, folder, **options):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=16,
        learning_rate=0.01,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns_of(kind)), loss=loss
    )
    trainer.train()
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in loss.named_parameters()}
    assert all(math.isfinite(change) for change in moved.values())
    assert any(change > 0 for name, change in moved.items() if name.startswith("model."))
    assert all(change > 0 for name, change in moved.items() if not name.startswith("model."))
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def demo():
    from nearfar.data import demo_model

    model = demo_model()
    model.model_card_data.generate_widget_examples = False
    return model


@pytest.mark.slow
@each(of_kind("documents"))
def test_hard_negatives_with_grades(case, tmp_path):
    model = demo()
    loss = ForSentenceTransformer(model, case.build(dtype=torch.float32))
    assert len(train(model, loss, "graded negatives", tmp_path)) == 2


@pytest.mark.slow
@each(CASES)
def test_every_loss_in_mini_batches_with_dropout_and_accumulation(case, bert, tmp_path):
    model = tiny_bert(bert, dropout=0.1, normalize=True, dtype=torch.float32)
    loss = ForSentenceTransformer(model, case.build(dim=DIM, dtype=torch.float32), mini_batch_size=5)
    kind = "labels" if case.capabilities.inputs == "labels" else "negatives"
    logs = train(model, loss, kind, tmp_path, gradient_accumulation_steps=2)
    assert all(math.isfinite(entry["loss"]) for entry in logs)


@pytest.mark.slow
@pytest.mark.parametrize("mini_batch_size", [None, 5])
def test_parts_of_a_sum_are_logged(mini_batch_size, bert, tmp_path):
    model = tiny_bert(bert, dtype=torch.float32)
    parts = {
        "base": (DecoupledSoftmaxLoss(), 1),
        "head": (ArcFaceLoss(CLASSES, DIM), 0.1),
        "margin": (ThresholdConsistentMarginLoss(), 0.5),
    }
    loss = ForSentenceTransformer(model, WeightedSum(parts), mini_batch_size)
    logs = train(model, loss, "labelled pairs", tmp_path)
    assert len(logs) == 2
    for entry in logs:
        assert sum(entry[name] for name in parts) == pytest.approx(entry["loss"], abs=1e-3)
        assert all(entry[name] > 0 for name in parts)


@pytest.mark.slow
def test_bfloat16_autocast(bert, tmp_path):
    for size in (None, 5):
        model = tiny_bert(bert, dtype=torch.float32)
        logs = train(
            model, ForSentenceTransformer(model, ArcFaceLoss(CLASSES, DIM), size), "labels", tmp_path, bf16=True
        )
        assert all(math.isfinite(entry["loss"]) for entry in logs)


@pytest.mark.slow
def test_raw_embeddings_of_a_normalising_model(bert, tmp_path):
    model = tiny_bert(bert, normalize=True, dtype=torch.float32)
    loss = AdaFaceLoss(CLASSES, DIM, ema=1.0)
    train(model, ForSentenceTransformer(model, loss), "labels", tmp_path)
    assert abs(loss.mean.item() - 1) > 0.1


@pytest.mark.slow
def test_the_model_card_shows_loss_settings_and_papers(bert, tmp_path):
    model = tiny_bert(bert, dtype=torch.float32)
    parts = {"base": (CircleLoss(m=0.3125), 1), "margin": (ThresholdConsistentMarginLoss(margin_plus=0.875), 0.0625)}
    train(model, ForSentenceTransformer(model, WeightedSum(parts), mini_batch_size=7), "labels", tmp_path / "run")
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    for fact in (
        "loss:ForSentenceTransformer",
        '"loss": "WeightedSum"',
        '"loss": "CircleLoss"',
        '"m": 0.3125',
        '"margin_plus": 0.875',
        '"weight": 0.0625',
        '"mini_batch_size": 7',
        "@inproceedings{sun2020circle",
        "@inproceedings{zhang2024threshold",
    ):
        assert fact in card, fact


@pytest.mark.slow
@each(CASES)
def test_every_loss_has_a_model_card(case, tmp_path):
    """Without a training step: what the trainer tells the card is enough."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model, loss = demo(), case.build(dtype=torch.float32)
    arguments = SentenceTransformerTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    kind = "labels" if case.capabilities.inputs == "labels" else "negatives"
    data = Dataset.from_dict(columns_of(kind))
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=ForSentenceTransformer(model, loss)
    )
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f'"loss": "{type(loss).__name__}"' in card
    assert all(f'"{name}":' in card for name in loss.settings())
    assert loss.citation.strip() in card

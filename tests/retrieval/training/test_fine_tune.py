"""Fine-tuning: what is trained, kept, resumed and refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from nearfar.data import Document, LabelledTexts, RetrievalDataset, TrainingPairs, demo_model
from nearfar.errors import InputError, UnknownNameError
from nearfar.losses import CircleLoss, NBCSoftmaxLoss
from nearfar.retrieval import fine_tune
from nearfar.retrieval.training.evaluator import RetrievalEvaluator

WORDS = ["hand", "foot", "eye", "ear", "nose", "heart", "lung", "liver"]
PAIRS = TrainingPairs(
    [f"{how} {word}" for word in WORDS for how in ("sore", "weak")],
    [f"disorder of the {word}" for word in WORDS for _ in range(2)],
    [word for word in WORDS for _ in range(2)],
)
SETTINGS = {"batch_size": 4, "learning_rate": 1e-2, "show_progress": False, "epochs": 3}


def tiny_dataset():
    corpus = {word: Document(word, f"disorder of the {word}") for word in WORDS}
    queries = {word: f"my {word} hurts" for word in WORDS}
    return RetrievalDataset(corpus, queries, {word: {word: 1} for word in WORDS}, "tiny")


def weights(model):
    return next(model.parameters()).detach().clone()


class StopAfter(TrainerCallback):
    """Breaks the run off as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_model(tmp_path):
    runs = [
        fine_tune(demo_model(), PAIRS, loss="circle", output_dir=tmp_path / f"{i}", seed=3, **SETTINGS) for i in "ab"
    ]
    other = fine_tune(demo_model(), PAIRS, loss="circle", output_dir=tmp_path / "c", seed=4, **SETTINGS)
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    assert not torch.equal(weights(runs[0].model), weights(other.model))


def test_training_changes_the_model_and_saves_it(tmp_path):
    from sentence_transformers import SentenceTransformer

    before = weights(demo_model())
    result = fine_tune(demo_model(), PAIRS, loss="decoupled-softmax", output_dir=tmp_path, **SETTINGS)
    assert not torch.equal(before, weights(result.model))
    assert torch.equal(weights(SentenceTransformer(str(tmp_path / "model"))), weights(result.model))
    assert json.loads((tmp_path / "run.json").read_text())["loss"]["class"] == "nearfar.DecoupledSoftmaxLoss"


@pytest.mark.parametrize("loss", ["circle", "nbc-softmax"])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, loss):
    straight = fine_tune(demo_model(), PAIRS, loss=loss, output_dir=tmp_path / "straight", **SETTINGS)
    options = {"loss": loss, "output_dir": tmp_path / "broken", **SETTINGS}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(demo_model(), PAIRS, callbacks=[StopAfter(10)], **options)
    assert not (tmp_path / "broken" / "model").exists()
    resumed = fine_tune(demo_model(), PAIRS, resume=True, **options)
    assert torch.equal(weights(straight.model), weights(resumed.model))


def test_the_losses_own_parameters_are_restored(tmp_path):
    losses = [NBCSoftmaxLoss(8, 256) for _ in range(3)]
    for loss in losses:
        loss.load_state_dict(losses[0].state_dict())
    run = {"output_dir": tmp_path / "broken", **SETTINGS}
    fine_tune(demo_model(), PAIRS, loss=losses[0], output_dir=tmp_path / "straight", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(demo_model(), PAIRS, loss=losses[1], callbacks=[StopAfter(10)], **run)
    fine_tune(demo_model(), PAIRS, loss=losses[2], resume=True, **run)
    assert torch.equal(losses[0].base.weight, losses[2].base.weight)


def test_the_best_model_is_kept(tmp_path):
    class Falling(RetrievalEvaluator):
        calls = 0

        def __call__(self, model, output_path=None, epoch=-1, steps=-1):
            Falling.calls += 1
            Falling.first = weights(model) if Falling.calls == 1 else Falling.first
            return {"tiny_R@1": 1 / Falling.calls}

    evaluator = Falling(tiny_dataset())
    result = fine_tune(demo_model(), PAIRS, loss="circle", output_dir=tmp_path, evaluator=evaluator, **SETTINGS)
    assert torch.equal(weights(result.model), Falling.first)


def test_the_evaluator_reports_and_learns(tmp_path):
    evaluator = RetrievalEvaluator(tiny_dataset(), ["R@1", "nDCG@10"])
    untrained = evaluator(demo_model())
    result = fine_tune(
        demo_model(), PAIRS, loss="multi-similarity", output_dir=tmp_path, evaluator=evaluator, **SETTINGS
    )
    assert set(result.metrics) == {"tiny_R@1", "tiny_nDCG@10"}
    assert result.metrics["tiny_nDCG@10"] >= untrained["tiny_nDCG@10"]
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == result.metrics


def test_global_generators_are_left_alone(tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    fine_tune(demo_model(), PAIRS, loss="circle", output_dir=tmp_path, **SETTINGS)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize(
    "train",
    [
        LabelledTexts(PAIRS.queries, PAIRS.labels),
        list(zip(PAIRS.queries, PAIRS.documents, strict=True)),
        [(q, d, "something else") for q, d in zip(PAIRS.queries, PAIRS.documents, strict=True)],
    ],
    ids=["labelled", "pairs", "triplets"],
)
def test_every_kind_of_data_trains(tmp_path, train):
    result = fine_tune(demo_model(), train, loss="circle", output_dir=tmp_path, **SETTINGS)
    assert np.isfinite(result.history[0]["loss"])


@pytest.mark.parametrize("loss", ["st:MultipleNegativesRankingLoss", "pml:SupConLoss", CircleLoss(gamma=32)])
def test_losses_of_all_three_libraries_train(tmp_path, loss):
    result = fine_tune(demo_model(), PAIRS, loss=loss, output_dir=tmp_path, **SETTINGS)
    assert np.isfinite(result.history[0]["loss"])


def test_an_occupied_folder_is_refused_and_another_recipe_too(tmp_path):
    options = {"loss": "circle", "output_dir": tmp_path}
    fine_tune(demo_model(), PAIRS, **options, **SETTINGS)
    with pytest.raises(InputError, match="holds a run already"):
        fine_tune(demo_model(), PAIRS, **options, **SETTINGS)
    with pytest.raises(InputError, match="learning_rate differ"):
        fine_tune(demo_model(), PAIRS, resume=True, **options, **{**SETTINGS, "learning_rate": 0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"batch_size": -1}, "batch_size=-1 must be above 0"),
        ({"train": []}, "training data is empty"),
        ({"train": ["just a text"]}, "must be a tuple"),
        ({"train": [("a", "b"), ("a",)]}, "must be a tuple"),
        ({"train": 3}, "train is a int"),
        ({"loss": CircleLoss(reduction="none")}, "reduction='mean'"),
        ({"loss": CircleLoss(), "loss_options": {"m": 1}}, "made already"),
        ({"loss": "nbc-softmax", "train": [("a", "b")] * 4}, "no label column"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, change, message):
    arguments = {"train": PAIRS, "loss": "circle", **SETTINGS, **change}
    train = arguments.pop("train")
    with pytest.raises(InputError, match=message):
        fine_tune(demo_model(), train, output_dir=tmp_path / "run", **arguments)


def test_an_unknown_loss_suggests_near_names(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean circle"):
        fine_tune(demo_model(), PAIRS, loss="cirle", output_dir=tmp_path, **SETTINGS)

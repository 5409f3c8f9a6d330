"""The rarer options of fine_tune do what they say, and say what they cannot do."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from nearfar.data import LabelledTexts, minilm_model
from nearfar.errors import InputError, MissingDependencyError, UnknownNameError
from nearfar.losses import InfoNCELoss, NBCSoftmaxLoss
from nearfar.retrieval import ClassEvaluator, LoraOptions, RetrievalEvaluator, TrainingOptions, fine_tune
from nearfar.retrieval.training import precision
from tests.retrieval.training.runs import PAIRS, SETTINGS, parameters, small_model, tiny_dataset, train


def test_frozen_parameters_stay(tmp_path):
    model = small_model()
    before = parameters(model)
    with pytest.raises(UnknownNameError, match="unknown parameter to freeze 'embeding'; did you mean"):
        fine_tune(model, PAIRS, loss="circle", output_dir=tmp_path / "a", options=TrainingOptions(freeze=["embeding"]))
    loss = NBCSoftmaxLoss(8, 16)
    head = loss.base.weight.detach().clone()
    options = TrainingOptions(freeze=[r"embedding\.weight$"])
    result = fine_tune(model, PAIRS, loss=loss, output_dir=tmp_path / "b", options=options, **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in parameters(result.model).items())
    assert not torch.equal(head, loss.base.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match="is not a regular expression"):
        fine_tune(model, PAIRS, loss="circle", output_dir=tmp_path / "c", options=TrainingOptions(freeze=["("]))


def test_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16", lambda: False)
    with pytest.raises(InputError, match="precision='bf16': this processor does not compute in bfloat16"):
        train(tmp_path / "a", "pairs", precision="bf16")
    train(tmp_path / "auto", "pairs", precision="auto")
    train(tmp_path / "fp32", "pairs")
    monkeypatch.setattr(precision, "computes_bf16", lambda: True)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            seen.append(args.bf16)

    train(tmp_path / "bf16", "pairs", precision="bf16", callbacks=[Watch()])
    assert all(seen)
    assert seen


def test_matryoshka(tmp_path):
    found = train(tmp_path / "a", "pairs", matryoshka_dimensions=[4, 8])
    assert np.isfinite(found.history[0]["loss"])
    with pytest.raises(InputError, match=r"matryoshka_dimensions=\[99\]: each must be between 1 and .* 16"):
        train(tmp_path / "b", "pairs", matryoshka_dimensions=[99])
    with pytest.raises(InputError, match="NBCSoftmaxLoss has class weights of one length"):
        train(tmp_path / "c", "head", matryoshka_dimensions=[4])


def test_adapters_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match="pip install peft"):
        train(tmp_path, "pairs", lora=LoraOptions(rank=4))
    assert not list(tmp_path.iterdir())


def test_patience(tmp_path):
    with pytest.raises(InputError, match="patience=1 needs an evaluator"):
        train(tmp_path / "a", "pairs", patience=1)
    evaluator = RetrievalEvaluator(tiny_dataset(), ["R@1"])
    found = train(tmp_path / "b", "pairs", patience=1, evaluator=evaluator, learning_rate=1e-9, epochs=9)
    assert max(entry["epoch"] for entry in found.history) == 2


def test_reporters(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean tensorboard"):
        train(tmp_path, "pairs", report_to=["tensorbord"])
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    with pytest.raises(MissingDependencyError, match="needs the package tensorboard"):
        train(tmp_path, "pairs", report_to=["tensorboard"])


def test_mini_batches_belong_to_losses_that_can(tmp_path):
    with pytest.raises(InputError, match="the model is static"):
        train(tmp_path, "pairs", mini_batch_size=2)
    with pytest.raises(InputError, match="MultipleNegativesRankingLoss has its own"):
        fine_tune(
            small_model(), PAIRS, loss="st:MultipleNegativesRankingLoss", output_dir=tmp_path,
            options=TrainingOptions(mini_batch_size=2), **SETTINGS,
        )  # fmt: skip


def test_gradient_accumulation_halves_the_steps(tmp_path):
    found = train(tmp_path, "pairs", gradient_accumulation=2)
    assert len(list(tmp_path.glob("checkpoints/checkpoint-6"))) == 1
    assert max(entry["epoch"] for entry in found.history) == 3


def test_several_evaluators(tmp_path):
    texts = LabelledTexts(PAIRS.queries, PAIRS.labels)
    evaluators = [RetrievalEvaluator(tiny_dataset(), ["R@1"]), ClassEvaluator(texts, "classes", ks=[1])]
    found = train(tmp_path / "a", "pairs", evaluator=evaluators)
    assert {"tiny_R@1", "classes_MAP@R"} <= set(found.metrics)
    logged = [entry for entry in found.history if "eval_tiny_R@1" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2, 3]
    assert all("eval_classes_MAP@R" in entry for entry in logged)
    best = max(entry["eval_tiny_R@1"] for entry in logged)
    assert found.metrics["tiny_R@1"] == pytest.approx(best)
    with pytest.raises(InputError, match="evaluators share the metric 'tiny_R@1'"):
        train(tmp_path / "b", "pairs", evaluator=[evaluators[0], RetrievalEvaluator(tiny_dataset(), ["R@1"])])


def test_several_data_sets(tmp_path):
    data = {"pairs": PAIRS, "texts": LabelledTexts(PAIRS.queries, PAIRS.labels)}
    run = {"output_dir": tmp_path / "a", **SETTINGS}
    one = fine_tune(small_model(), data, loss="circle", **run)
    assert np.isfinite(one.history[0]["loss"])
    run["output_dir"] = tmp_path / "b"
    losses = {"pairs": InfoNCELoss(), "texts": "nbc-softmax"}
    each = fine_tune(small_model(), data, loss=losses, **run)
    assert np.isfinite(each.history[0]["loss"])
    run["output_dir"] = tmp_path / "c"
    for wrong, message in (
        ({"pairs": "circle"}, "loss is given for the data sets pairs; the training data is pairs, texts"),
        ("nbc-softmax", "give each a loss of its own"),
    ):
        with pytest.raises(InputError, match=message):
            fine_tune(small_model(), data, loss=wrong, **run)
    with pytest.raises(InputError, match="loss_options has other"):
        fine_tune(small_model(), data, loss=losses, loss_options={"other": {}}, **run)
    with pytest.raises(InputError, match="holds no data set"):
        fine_tune(small_model(), {}, loss="circle", **run)


def test_a_teachers_scores_are_a_column(tmp_path):
    rows = Dataset.from_dict(
        {
            "query": PAIRS.queries,
            "positive": PAIRS.documents,
            "negative": PAIRS.documents[::-1],
            "label": np.linspace(0, 1, len(PAIRS)).tolist(),
        }
    )
    found = fine_tune(small_model(), rows, loss="st:MarginMSELoss", output_dir=tmp_path, **SETTINGS)
    assert np.isfinite(found.history[0]["loss"])


@pytest.mark.slow
def test_a_guide_masks_false_negatives_and_is_not_saved_with_the_loss(tmp_path):
    minilm_model().save_pretrained(str(tmp_path / "guide"))
    found = fine_tune(
        minilm_model(), PAIRS, loss="st:GISTEmbedLoss", loss_options={"guide": str(tmp_path / "guide")},
        output_dir=tmp_path / "run", trainer_args={"max_steps": 1}, **SETTINGS,
    )  # fmt: skip
    assert np.isfinite(found.history[0]["loss"])
    assert not list((tmp_path / "run").rglob("loss.safetensors"))


@pytest.mark.slow
def test_mini_batches_give_the_gradient_of_the_batch(tmp_path):
    options = {"warmup_share": 0, "trainer_args": {"max_steps": 1, "optim": "sgd"}, **SETTINGS}
    models = {}
    for size in (None, 2):
        model = minilm_model().eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        options |= {"output_dir": tmp_path / str(size), "options": TrainingOptions(mini_batch_size=size)}
        models[size] = parameters(fine_tune(model, PAIRS, loss="info-nce", **options).model)
    start = parameters(minilm_model())
    moved = torch.cat([(models[None][name] - start[name]).flatten() for name in start])
    cached = torch.cat([(models[2][name] - start[name]).flatten() for name in start])
    assert moved.norm() > 0
    assert (moved - cached).norm() < 1e-3 * moved.norm()


def test_a_sampler_may_be_a_local_function(tmp_path):
    """The trainer of sentence-transformers would pickle it at the first checkpoint."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    def in_order(dataset, **options):
        return DefaultBatchSampler(SequentialSampler(dataset), **options)

    found = train(tmp_path, "pairs", batch_sampler=in_order)
    assert np.isfinite(found.history[0]["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini_batch_size": 0}, "mini_batch_size=0"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"patince": 3}, "unknown option 'patince'; did you mean patience"),
        ({"lora": {"dropout": 1.5}}, "dropout=1.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        TrainingOptions(**options)


def test_an_unknown_training_argument(tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean .*learning_rate"):
        train(tmp_path, "pairs", trainer_args={"lerning_rate": 1})

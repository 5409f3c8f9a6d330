"""A loss's own parameters: found, trained at their own rate, clipped, and kept with the best model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from nearfar.errors import InputError
from nearfar.losses import ForSentenceTransformer, SigLIPLoss
from nearfar.retrieval.training.evaluator import RetrievalEvaluator
from nearfar.retrieval.training.loss_parameters import load_own_state, own_parameters, own_state, regroup
from tests.retrieval.training.runs import assert_equal_states, make_loss, small_model, tiny_dataset, train


class Nested(nn.Module):
    """Holds the model under another name, deep down, beside a teacher and weights of its own."""

    def __init__(self, model, teacher):
        super().__init__()
        self.model = model
        self.parts = nn.ModuleList([nn.Sequential(model), teacher])
        self.head = nn.Linear(3, 2)
        self.tied = self.head
        self.register_buffer("steps", torch.zeros(1))


def test_the_model_and_a_teacher_are_no_part_of_the_loss():
    model, teacher = small_model(), small_model()
    loss = Nested(model, teacher)
    assert set(own_state(loss, model)) == {"head.weight", "head.bias", "tied.weight", "tied.bias", "steps"}
    by_set = own_state({"a": loss, "b": ForSentenceTransformer(model, SigLIPLoss())}, model)
    assert {"a.head.weight", "b.loss.log_scale", "b.loss.bias"} <= set(by_set)
    assert not any("embedding" in name for name in by_set)
    assert set(own_parameters(loss, model)) == {"head.weight", "head.bias", "tied.weight", "tied.bias"}


def test_a_wrapped_model_is_told_by_identity():
    model = small_model()
    loss = Nested(model, small_model())
    loss.model = nn.Sequential(model)  # as DistributedDataParallel renames what it wraps
    assert not any("embedding" in name for name in own_state(loss, model))


@pytest.mark.parametrize("change", [lambda s: s.pop("head.bias"), lambda s: s.update({"head.bias": torch.ones(3)})])
def test_the_state_of_another_loss_is_refused(change):
    model = small_model()
    loss = Nested(model, small_model())
    state = {name: value.clone() for name, value in own_state(loss, model).items()}
    change(state)
    with pytest.raises(InputError, match=r"another loss \(head.bias differ\)"):
        load_own_state(loss, model, state, "loss.safetensors")


def test_groups_of_an_optimiser():
    model, head, scale = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (3,), ()))
    groups = [{"params": [model, head, scale], "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    found = regroup(groups, [head, scale], 0.5)
    assert [[len(g["params"]), g["weight_decay"], g.get("lr")] for g in found] == [
        [1, 0.1, None], [0, 0.0, None], [1, 0.1, 0.5], [1, 0.0, 0.5],
    ]  # fmt: skip
    assert found[2]["params"][0] is head
    mapped = regroup([{"params": [head], "lr": 0.9}], [head], 0.5)
    assert mapped[-1]["lr"] == 0.9


class Steps(TrainerCallback):
    """Parameters and gradients before and after the first step."""

    def __init__(self, loss):
        self.loss = loss

    def _named(self, model):
        return {**dict(model.named_parameters()), **dict(self.loss.named_parameters())}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in self._named(model).items()}
            self.before = {name: p.detach().clone() for name, p in self._named(model).items()}

    def on_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            self.after = {name: p.detach().clone() for name, p in self._named(model).items()}


@pytest.mark.parametrize("kind", ["head", "documents"])
def test_own_rate_and_no_decay_of_single_numbers(tmp_path, kind):
    loss = make_loss(kind)
    steps = Steps(loss)
    sgd = {"optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1, "warmup_steps": 0}
    train(
        tmp_path, kind, loss=loss, callbacks=[steps], learning_rate=0.5, loss_learning_rate=2.0, weight_decay=0.25,
        max_grad_norm=0, trainer_args=sgd,
    )  # fmt: skip
    own = set(dict(loss.named_parameters()))
    assert own
    for name, before in steps.before.items():
        rate = 2.0 if name in own else 0.5
        decay = 0.0 if before.numel() == 1 or "bias" in name else 0.25
        expected = before - rate * (steps.gradients[name] + decay * before)
        torch.testing.assert_close(steps.after[name], expected)


@pytest.mark.parametrize("kind", ["head", "documents"])
def test_clipping_sees_model_and_loss_as_one(tmp_path, kind):
    norms = {}
    for limit in (0, 1e-3):
        loss = make_loss(kind)
        steps = Steps(loss)
        run = {"callbacks": [steps], "trainer_args": {"max_steps": 1, "logging_strategy": "steps", "logging_steps": 1}}
        result = train(tmp_path / str(limit), kind, loss=loss, max_grad_norm=limit, **run)
        whole = torch.cat([gradient.flatten() for gradient in steps.gradients.values()])
        norms[limit] = [float(whole.norm()), result.history[0]["grad_norm"]]
    assert norms[0][0] == pytest.approx(norms[0][1])
    assert norms[1e-3][0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1e-3][1] == pytest.approx(norms[0][0])  # what is logged is the norm before clipping


class Falling(RetrievalEvaluator):
    """Likes each model less than the one before."""

    calls = 0

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.calls += 1
        return {"tiny_R@1": 1 / self.calls}


@pytest.mark.parametrize("kind", ["head", "moving averages", "documents"])
def test_the_best_models_loss_is_kept(tmp_path, kind):
    loss = make_loss(kind)
    train(tmp_path, kind, loss=loss, evaluator=Falling(tiny_dataset()), keep_checkpoints=5)
    states = {step: load_file(tmp_path / f"checkpoints/checkpoint-{step}/loss.safetensors") for step in (4, 12)}
    assert any(not torch.equal(states[4][name], states[12][name]) for name in states[4])
    assert_equal_states(load_file(tmp_path / "model" / "loss.safetensors"), states[4])
    assert_equal_states({f"loss.{name}": value for name, value in loss.state_dict().items()}, states[4])


def test_a_loss_without_parameters_leaves_no_file(tmp_path):
    train(tmp_path, "pairs")
    assert not list(tmp_path.rglob("loss.safetensors"))
    assert set(json.loads((tmp_path / "run.json").read_text())) == {"data", "loss", "processes", "versions"}

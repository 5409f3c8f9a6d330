"""Fine-tuning of plain modules on tensors: what is trained, kept, resumed, synchronised and refused."""

from __future__ import annotations

import copy
import json
import os
import random

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.utils.data import BatchSampler, Dataset, Subset
from transformers import TrainerCallback

from nearfar.errors import InputError, UnknownNameError
from nearfar.losses import BiXSELoss, CircleLoss, CosFaceLoss, ThresholdConsistentMarginLoss, WeightedSum, get_loss
from nearfar.miners import ClassBalancedBatchSampler, GlobalProxyMiner
from nearfar.retrieval import ClassEvaluator, TensorData, embed
from nearfar.retrieval.training.module_trainer import RandomBatches
from nearfar.retrieval.training.options import TrainingOptions
from tests.retrieval.training.module_runs import (
    CLASSES,
    DIM,
    HELD_OUT,
    SETTINGS,
    TRAIN,
    Pairs,
    assert_same_state,
    differ,
    network,
    run,
)
from tests.retrieval.training.runs import StopAfter, assert_equal_states, everything, in_processes


def test_the_seed_decides_and_global_generators_are_left_alone(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    evaluator = ClassEvaluator(HELD_OUT)
    one = run(tmp_path / "a", seed=3, evaluator=evaluator).model
    assert draw() == expected
    again, other = run(tmp_path / "b", seed=3, evaluator=evaluator).model, run(tmp_path / "c", seed=4).model
    assert_same_state(one, again)
    assert differ(one, other)


def test_training_learns_and_the_evaluator_measures_every_epoch(tmp_path):
    evaluator = ClassEvaluator(HELD_OUT, "held", ks=[1])
    untrained = evaluator(network())
    result = run(tmp_path, evaluator=evaluator, epochs=8)
    assert result.metrics["held_hit@1"] > untrained["held_hit@1"] + 0.1
    assert set(result.metrics) == {
        f"held_{m}" for m in ("hit@1", "R-precision", "MAP@R", "MRR", "OPIS", "OPIS-corrected")
    }
    measured = [entry["eval_held_MAP@R"] for entry in result.history if "eval_held_MAP@R" in entry]
    assert len(measured) == 8
    assert result.metrics["held_MAP@R"] == max(measured)
    rows = (tmp_path / "checkpoints" / "eval" / "held.csv").read_text().splitlines()
    assert len(rows) == 9
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == result.metrics


def test_the_best_module_is_kept_with_its_loss(tmp_path):
    seen = []

    class Falling(ClassEvaluator):
        def __call__(self, model, *where, **more):
            seen.append(copy.deepcopy(model))
            return {"classes_MAP@R": 1 / len(seen)}

    loss = CosFaceLoss(CLASSES, 4)
    heads = []

    class Keep(TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            heads.append(loss.weight.detach().clone())

    result = run(tmp_path, loss=loss, evaluator=Falling(HELD_OUT), callbacks=[Keep()])
    assert_same_state(result.model, seen[0])
    assert torch.equal(loss.weight, heads[0])
    assert not torch.equal(heads[0], heads[2])


def test_the_run_folder_holds_the_module_and_the_loss(tmp_path):
    loss = CosFaceLoss(CLASSES, 4)
    result = run(tmp_path, loss=loss)
    fresh = network()
    load_model(fresh, tmp_path / "model" / "model.safetensors")
    assert_same_state(fresh, result.model)
    assert torch.equal(load_file(tmp_path / "model" / "loss.safetensors")["weight"], loss.weight)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["module"], facts["loss"]["class"], facts["data"]["rows"]) == ("Sequential", "nearfar.CosFaceLoss", 60)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["learning_rate"] == SETTINGS["learning_rate"]


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    def tied():
        module = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))
        module[2].weight = module[0].weight
        return module

    result = run(tmp_path, module=tied(), evaluator=ClassEvaluator(HELD_OUT))
    assert result.model[2].weight is result.model[0].weight
    fresh = tied()
    load_model(fresh, tmp_path / "model" / "model.safetensors")
    assert_same_state(fresh, result.model)


@pytest.mark.parametrize("stop", [5, 7, 9])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop):
    """Module, loss, optimiser, generators, log and metrics; 5 steps make an epoch, so 5 falls on the end of one."""

    def once(name, **more):
        parts = {"head": (get_loss("elasticface", num_classes=CLASSES, embedding_size=4, sample_rate=0.5), 1.0)}
        with torch.no_grad():
            parts["head"][0].weight.copy_(torch.linspace(-1, 1, 24).reshape(6, 4))
        loss = WeightedSum({**parts, "margin": (ThresholdConsistentMarginLoss(), 1.0)})
        options = TrainingOptions(save_every=1)
        return run(tmp_path / name, loss=loss, evaluator=ClassEvaluator(HELD_OUT), options=options, **more)

    straight = once("straight")
    with pytest.raises(KeyboardInterrupt):
        once("broken", callbacks=[StopAfter(stop)])
    assert not (tmp_path / "broken" / "model").exists()
    resumed = once("broken", resume=True)
    assert_same_state(straight.model, resumed.model)
    assert straight.history == resumed.history
    assert_equal_states(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_a_losss_own_parameters_have_their_own_rate_and_are_clipped(tmp_path):
    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **_):
            self.groups = [(group["initial_lr"], len(group["params"])) for group in optimizer.param_groups]

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
            assert model.loss.weight.grad.abs().sum() > 0

    watch = Watch()
    arguments = {"max_grad_norm": 1e-3}
    run(tmp_path, loss="cosface", loss_learning_rate=0.5, callbacks=[watch], trainer_args=arguments)
    assert [group for group in watch.groups if group[1]] == [(1e-2, 3), (1e-2, 3), (0.5, 1)]
    assert watch.norm == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_gradients_of_small_batches_are_those_of_the_large_one(tmp_path):
    """A loss that is a mean over samples does not care how its batch is cut."""

    def trained(folder, batch_size, parts):
        module = nn.Linear(DIM, 4)
        with torch.no_grad():
            module.weight.fill_(0.1), module.bias.zero_()
        arguments = {"gradient_accumulation_steps": parts, "optim": "sgd"}
        return run(folder, module=module, loss=Squares(), batch_size=batch_size, trainer_args=arguments).model

    large, small = trained(tmp_path / "1", 20, 1), trained(tmp_path / "2", 10, 2)
    torch.testing.assert_close(large.weight, small.weight)
    assert (large.weight - 0.1).abs().max() > 1e-3


class Squares(nn.Module):
    def forward(self, embeddings, labels):
        return (embeddings.sum(1) - labels).square().mean()


def test_bfloat16_reaches_the_module_and_not_the_loss(tmp_path):
    dtypes = []

    class Spy(CircleLoss):
        def forward(self, embeddings, *args, **options):
            dtypes.append((embeddings.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(embeddings, *args, **options)

    class Half(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            dtypes.append((output.dtype, True))
            return output

    run(tmp_path, module=Half(DIM, 4), loss=Spy(), trainer_args={"bf16": True, "use_cpu": True}, epochs=1)
    assert (torch.bfloat16, True) in dtypes
    assert {dtype for dtype, autocast in dtypes if not autocast} == {torch.float32}


def test_parts_of_a_sum_are_logged_and_add_up(tmp_path):
    loss = WeightedSum({"base": (CircleLoss(), 1.0), "margin": (ThresholdConsistentMarginLoss(), 0.5)})
    first, *_ = run(tmp_path, loss=loss).history
    assert first["base"] + first["margin"] == pytest.approx(first["loss"], rel=1e-5)
    assert first["margin"] > 0


@pytest.mark.parametrize(
    "loss", ["pml:SupConLoss", "pml:ArcFaceLoss", "arcface", CircleLoss(gamma=32), get_loss("supcon")]
)
def test_losses_by_name_and_made_already_train(tmp_path, loss):
    before = network()
    result = run(tmp_path, loss=loss)
    assert np.isfinite(result.history[0]["loss"])
    assert differ(before, result.model)


@pytest.mark.parametrize(
    "wrap", [Pairs, lambda data: Subset(data, range(48)), lambda data: Subset(Pairs(data), range(48))]
)
def test_any_data_set_of_pairs_trains(tmp_path, wrap):
    data = wrap(TRAIN)
    result = run(tmp_path, train=data, loss="arcface", evaluator=ClassEvaluator(data))
    assert result.metrics["classes_hit@1"] > 0


def test_a_data_set_gives_the_model_that_its_tensors_give(tmp_path):
    assert_same_state(run(tmp_path / "a").model, run(tmp_path / "b", train=Pairs(TRAIN)).model)


def test_workers_read_the_same_batches(tmp_path):
    there = run(tmp_path / "a", epochs=1, trainer_args={"dataloader_num_workers": 1})
    assert_same_state(run(tmp_path / "b", epochs=1).model, there.model)


def test_inputs_may_be_several_tensors(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(DIM, 4)

        def forward(self, inputs):
            return self.layer(inputs["value"] * inputs["weight"][:, None])

    class Weighted(Dataset):
        def __len__(self):
            return len(TRAIN)

        def __getitem__(self, row):
            return {"value": TRAIN.inputs[row], "weight": torch.tensor(0.5)}, TRAIN.labels[row]

    result = run(tmp_path, module=Both(), train=Weighted())
    assert torch.isfinite(embed(result.model, Weighted())).all()


def test_samplers_are_given_the_labels(tmp_path):
    batches = []

    class ByClass(BatchSampler):
        def __init__(self, dataset, batch_size, drop_last, valid_label_columns, generator, seed):
            self.labels, self.epoch, self.size = np.asarray(dataset[valid_label_columns[0]]), None, batch_size

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 4

        def __iter__(self):
            for number in range(4):
                rows = np.flatnonzero(self.labels // 2 == (number + self.epoch) % 3)[: self.size].tolist()
                batches.append((self.epoch, set(self.labels[rows].tolist())))
                yield rows

    run(tmp_path / "own", batch_sampler=ByClass)
    assert batches[::4] == [(0, {0, 1}), (1, {2, 3}), (2, {4, 5})]
    for name, choice in (("grouped", "group_by_label"), ("balanced", ClassBalancedBatchSampler.factory(4))):
        assert np.isfinite(run(tmp_path / name, batch_sampler=choice).history[0]["loss"])


def test_a_miner_composes_the_batches_and_sees_the_embeddings(tmp_path):
    def mined(folder, **options):
        miner = GlobalProxyMiner(group_size=2, samples_per_class=3, proxy_dim=3, seed=1)
        return run(folder, miner=miner, **options), miner

    result, miner = mined(tmp_path / "straight")
    assert miner.proxies.shape == (CLASSES, 3)
    assert all(len(set(TRAIN.labels[batch].tolist())) in (2, 3, 4) for batch in miner.plan)
    assert "head.weight" in load_file(tmp_path / "straight" / "model" / "loss.safetensors")
    with pytest.raises(KeyboardInterrupt):
        mined(tmp_path / "broken", callbacks=[StopAfter(9)])
    resumed, again = mined(tmp_path / "broken", resume=True)
    assert_same_state(result.model, resumed.model)
    assert torch.equal(miner.proxies, again.proxies)


def test_frozen_parts_stay_and_training_ends_early(tmp_path):
    module, before = network(), network()
    options = TrainingOptions(freeze=(r"^0\.",), patience=1, save_every=3)
    evaluator = ClassEvaluator(HELD_OUT, primary="hit@1", ks=[1])
    result = run(tmp_path, module=module, evaluator=evaluator, epochs=40, options=options)
    assert torch.equal(module[0].weight, before[0].weight)
    assert not torch.equal(module[3].weight, before[3].weight)
    assert result.history[-1]["epoch"] < 40


def test_random_batches_cover_an_epoch_and_spare_a_lonely_sample():
    sampler = RandomBatches(25, 8, drop_last=False, seed=0)
    first = list(sampler)
    assert [len(batch) for batch in first] == [8, 8, 8]
    assert len({row for batch in first for row in batch}) == 24
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert [len(batch) for batch in RandomBatches(26, 8, drop_last=False, seed=0)] == [8, 8, 8, 2]
    assert [len(batch) for batch in RandomBatches(26, 8, drop_last=True, seed=0)] == [8, 8, 8]


def test_a_finished_folder_and_another_recipe_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        run(tmp_path)
    with pytest.raises(InputError, match="learning_rate differ"):
        run(tmp_path, resume=True, learning_rate=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"loss_learning_rate": -1}, "loss_learning_rate=-1 must be above 0"),
        ({"train": [(1, 2)]}, "TensorData"),
        ({"train": Subset(TRAIN, [])}, "data set is empty"),
        ({"train": torch.utils.data.TensorDataset(TRAIN.inputs)}, "pairs \\(input, label\\)"),
        ({"train": torch.utils.data.TensorDataset(TRAIN.inputs, TRAIN.inputs[:, 0])}, "labels are float32"),
        ({"train": TensorData(torch.eye(8)[:1], [0])}, "1 samples make 0 batch"),
        ({"module": nn.Flatten(0)}, "returned shape \\(16,\\) for 2 inputs"),
        ({"module": nn.LSTM(DIM, 4)}, "returned a tuple for 2 inputs"),
        ({"loss": "st:MultipleNegativesRankingLoss"}, "learns from a label loss"),
        ({"loss": "bixse"}, "BiXSELoss compares queries with documents"),
        ({"loss": BiXSELoss()}, "BiXSELoss compares queries with documents"),
        ({"loss": CircleLoss(reduction="none")}, "reduction='mean'"),
        ({"loss": CircleLoss(), "loss_options": {"m": 1}}, "made already"),
        ({"loss": 3}, "loss is a int"),
        ({"batch_sampler": "no_duplicates"}, "batch_sampler='no_duplicates' is no choice"),
        ({"batch_sampler": "group_by_label", "miner": GlobalProxyMiner()}, "leave one out"),
        ({"options": TrainingOptions(mini_batch_size=4)}, "mini_batch_size=4 is for a SentenceTransformer"),
        ({"options": TrainingOptions(patience=1)}, "patience=1 needs an evaluator"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        run(tmp_path / "run", **change)
    assert "\n" not in str(error.value)


def test_an_unknown_loss_suggests_near_names(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean circle"):
        run(tmp_path, loss="cirle")


# Several processes


def trained(folder, batch_size):
    """What a process ends with, in a file of its own."""
    rank = int(os.environ.get("RANK", 0))
    loss = CosFaceLoss(CLASSES, 4, gather_across_devices=True)
    module = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in [*module.parameters(), loss.weight]:  # the first process's start counts
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape) + rank)
    options = {"trainer_args": {"optim": "sgd"}, "evaluator": ClassEvaluator(HELD_OUT)}
    run(folder, module=module, loss=loss, batch_size=batch_size, **options)
    save_file({**module.state_dict(), "head": loss.weight.detach()}, folder.with_name(f"{folder.name}-{rank}"))


@pytest.mark.slow
def test_two_processes_are_one_with_the_global_batch(tmp_path):
    in_processes(trained, tmp_path / "two", 6)
    trained(tmp_path / "one", 12)
    one, first, second = (load_file(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    for name in one:
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - one[name]).norm() < 1e-5 * one[name].norm(), name

"""An interrupted run that is resumed is the unbroken one, bit for bit."""

from __future__ import annotations

import random
import shutil

import pytest

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, HardNegativeMixing, Metrix, WithOptions
from nearfar.miners import EmbeddingMemory
from nearfar.retrieval import TrainingOptions, fine_tune
from nearfar.retrieval.training.evaluator import RetrievalEvaluator
from tests.retrieval.training.runs import (
    LOSSES,
    PAIRS,
    SETTINGS,
    StopAfter,
    assert_equal_states,
    everything,
    small_model,
    tiny_dataset,
    train,
)


def broken_at(step, folder, kind, **changes):
    with pytest.raises(KeyboardInterrupt):
        train(folder, kind, callbacks=[StopAfter(step)], **changes)


@pytest.mark.parametrize("kind", LOSSES)
def test_at_any_step(tmp_path, kind):
    step = random.Random(kind).randrange(1, 12)
    train(tmp_path / "straight", kind, save_every=1)
    broken_at(step, tmp_path / "broken", kind, save_every=1)
    train(tmp_path / "broken", kind, save_every=1, resume=True)
    assert_equal_states(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_a_memory_that_has_grown(tmp_path):
    """Its buffers are empty in a fresh loss and full in the checkpoint."""

    def memory():
        return EmbeddingMemory(CircleLoss(), size=24)

    train(tmp_path / "straight", "pairs", loss=memory(), save_every=1)
    broken_at(6, tmp_path / "broken", "pairs", loss=memory(), save_every=1)
    train(tmp_path / "broken", "pairs", loss=memory(), save_every=1, resume=True)
    straight = everything(tmp_path / "straight")
    assert any("loss.embeddings" in value for value in straight.values() if isinstance(value, dict))
    assert_equal_states(straight, everything(tmp_path / "broken"))


@pytest.mark.parametrize("step", [4, 7])
def test_options_of_the_loss_call(tmp_path, step):
    """Their draws go on where they stopped."""

    def loss(seed=1):
        synthesis = HardNegativeMixing(hardest=2, mixtures=2, query_mixtures=1, seed=seed)
        return WithOptions(CircleLoss(), Metrix(seed=seed), synthesis)

    train(tmp_path / "straight", "pairs", loss=loss(), save_every=1)
    broken_at(step, tmp_path / "broken", "pairs", loss=loss(), save_every=1)
    train(tmp_path / "broken", "pairs", loss=loss(), save_every=1, resume=True)
    train(tmp_path / "other", "pairs", loss=loss(seed=2), save_every=1)
    straight = everything(tmp_path / "straight")
    assert_equal_states(straight, everything(tmp_path / "broken"))
    assert straight["log"] != everything(tmp_path / "other")["log"]


@pytest.mark.parametrize("step", [4, 5])
def test_with_everything_that_keeps_a_count(tmp_path, step):
    """Accumulated gradients, evaluations, early stopping, several checkpoints; at an epoch's end and within."""
    changes = {"gradient_accumulation": 2, "save_every": 1, "patience": 2, "epochs": 4, "batch_size": 3}
    options = {**changes, "evaluator": RetrievalEvaluator(tiny_dataset(), ["R@1"]), "learning_rate": 1e-9}
    train(tmp_path / "straight", "head", **options)
    broken_at(step, tmp_path / "broken", "head", **options)
    train(tmp_path / "broken", "head", resume=True, **options)
    straight = everything(tmp_path / "straight")
    assert_equal_states(straight, everything(tmp_path / "broken"))
    assert [entry["epoch"] for entry in straight["log"] if "eval_tiny_R@1" in entry] == [1, 2, 3]


def test_a_trainers_own_saving_strategy(tmp_path):
    """Its checkpoint at the end of an epoch waits for that epoch's log entry."""
    options = {"trainer_args": {"save_strategy": "steps", "save_steps": 2}}
    train(tmp_path / "straight", "pairs", **options)
    broken_at(9, tmp_path / "broken", "pairs", **options)
    train(tmp_path / "broken", "pairs", resume=True, **options)
    straight = everything(tmp_path / "straight")
    assert_equal_states(straight, everything(tmp_path / "broken"))
    assert [entry["epoch"] for entry in straight["log"] if "loss" in entry] == [1, 2, 3]


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    train(tmp_path / "straight", "head", save_every=1)
    broken_at(7, tmp_path / "broken", "head", save_every=1)
    newest = max((tmp_path / "broken" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    (newest / "complete").unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    # And one that the resumed run will write again.
    shutil.copytree(newest, newest.with_name("checkpoint-9"))
    train(tmp_path / "broken", "head", save_every=1, resume=True)
    assert_equal_states(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_checkpoints_do_not_disturb_the_run(tmp_path):
    train(tmp_path / "often", "head", save_every=1)
    train(tmp_path / "rarely", "head")
    assert_equal_states(everything(tmp_path / "often"), everything(tmp_path / "rarely"))


def test_a_run_folder_may_move(tmp_path):
    evaluator = RetrievalEvaluator(tiny_dataset(), ["R@1"])
    # So large a rate that the first epoch is the best.
    options = {"learning_rate": 5.0, "evaluator": evaluator, "trainer_args": {"lr_scheduler_type": "constant"}}
    train(tmp_path / "straight", "pairs", **options)
    broken_at(10, tmp_path / "broken", "pairs", **options)
    (tmp_path / "broken").rename(tmp_path / "moved")
    train(tmp_path / "moved", "pairs", resume=True, **options)
    assert_equal_states(everything(tmp_path / "straight"), everything(tmp_path / "moved"))


def test_another_run_is_refused(tmp_path):
    broken_at(5, tmp_path, "pairs")
    with pytest.raises(InputError, match="holds a run already"):
        train(tmp_path, "pairs")
    with pytest.raises(InputError, match=r"another recipe \(save_every differ\)"):
        train(tmp_path, "pairs", resume=True, save_every=2)
    other = type(PAIRS)(PAIRS.queries[::-1], PAIRS.documents, PAIRS.labels)
    with pytest.raises(InputError, match=r"another recipe \(data differ\)"):
        fine_tune(
            small_model(), other, loss="circle", output_dir=tmp_path, resume=True, options=TrainingOptions(), **SETTINGS
        )
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        train(tmp_path, "pairs", resume=True)

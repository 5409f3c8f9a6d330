"""Two processes: one batch, one loss, one folder; started by ``torchrun`` as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from nearfar.data import TrainingPairs
from nearfar.errors import InputError
from nearfar.retrieval import TrainingOptions, fine_tune
from nearfar.retrieval.training.evaluator import RetrievalEvaluator
from tests.losses.hosts.models import texts, tiny_bert, write_parts
from tests.retrieval.training.runs import (
    LOSSES,
    StopAfter,
    assert_equal_states,
    everything,
    in_processes,
    make_loss,
    tiny_dataset,
    train,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BROKEN = {"head": 5, "moving averages": 4, "documents": 6}  # steps, of 6 in 3 epochs; two are within an epoch


class FirstGradient(TrainerCallback):
    """Keeps what the first step of the optimiser sees, by name."""

    def __init__(self, loss):
        self.loss, self.found = loss, {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if not self.found:
            named = [*model.named_parameters(), *self.loss.named_parameters()]
            self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_gradient(folder, kind, batch_size, gather):
    """Gradients of model and loss at the first step, by name."""
    loss = make_loss(kind, gather)
    keeper = FirstGradient(loss)
    options = {"max_grad_norm": 0, "trainer_args": {"max_steps": 1}, "batch_size": batch_size}
    train(folder, kind, loss=loss, callbacks=[keeper], **options)
    return keeper.found


def cached_gradient(folder, parts, batch_size, gather):
    """The same of a transformer that embeds three rows at once (GradCache)."""
    model, loss = tiny_bert(parts), make_loss("documents", gather)
    keeper = FirstGradient(loss)
    pairs = TrainingPairs(texts(16, seed=1), texts(16, seed=2), list(map(str, range(16))))
    options = TrainingOptions(mini_batch_size=3, max_grad_norm=0)
    fine_tune(
        model, pairs, loss=loss, output_dir=folder, options=options, trainer_args={"max_steps": 1},
        callbacks=[keeper], batch_size=batch_size, learning_rate=1e-2, show_progress=False,
    )  # fmt: skip
    return keeper.found


def work(folder):
    """All that two processes do; what they find is written into files."""
    rank = int(os.environ["RANK"])
    found = cached_gradient(folder / "cached", str(folder / "bert"), batch_size=8, gather=True)
    save_file(found, folder / f"gradient-cached-{rank}.safetensors")
    for kind in LOSSES:
        found = first_gradient(folder / "first" / kind, kind, batch_size=8, gather=True)
        save_file(found, folder / f"gradient-{kind}-{rank}.safetensors")
    for kind, step in BROKEN.items():
        break_and_resume(folder, kind, step, rank)


def break_and_resume(folder, kind, step, rank):
    # A sampler that decides by itself what an epoch's order is; nothing but the trainer tells it the epoch.
    sampler = {"batch_sampler": "no_duplicates"} if kind == "moving averages" else {}
    options = {"save_every": 1, "evaluator": RetrievalEvaluator(tiny_dataset(), ["R@1"]), **sampler}
    # Losses that begin apart, and do not share the batch, must come and stay together all the same.
    losses = [make_loss(kind, gather=False) for _ in range(3)]
    for loss in losses:
        for parameter in loss.parameters():
            parameter.data += rank
    straight = train(folder / "straight" / kind, kind, loss=losses[0], **options)
    with pytest.raises(KeyboardInterrupt):
        train(folder / "broken" / kind, kind, loss=losses[1], callbacks=[StopAfter(step)], **options)
    # A complaint of the first process reaches all.
    with pytest.raises(InputError, match="holds a run already"):
        train(folder / "broken" / kind, kind, **options)
    resumed = train(folder / "broken" / kind, kind, loss=losses[2], resume=True, **options)
    assert straight.metrics == resumed.metrics
    state = {**resumed.model.state_dict(), **{f"loss.{n}": v for n, v in losses[2].state_dict().items()}}
    save_file(state, folder / f"end-{kind}-{rank}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    (path / "bert").mkdir()
    write_parts(path / "bert")
    in_processes(work, path)
    return path


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_is_that_of_the_whole_batch(folder, tmp_path, kind):
    wanted = first_gradient(tmp_path, kind, batch_size=16, gather=False)
    assert_both_have(wanted, folder, kind)


def test_the_gradient_of_grad_cache_is_that_of_the_whole_batch(folder, tmp_path):
    wanted = cached_gradient(tmp_path / "run", str(folder / "bert"), batch_size=16, gather=False)
    assert_both_have(wanted, folder, "cached")


def assert_both_have(wanted, folder, kind):
    whole = torch.cat([wanted[name].flatten() for name in sorted(wanted)])
    for rank in range(2):
        found = load_file(folder / f"gradient-{kind}-{rank}.safetensors")
        assert found.keys() == wanted.keys()
        mine = torch.cat([found[name].flatten() for name in sorted(wanted)])
        error = (mine - whole).norm() / whole.norm()
        print(f"{kind}, rank {rank}: {error:.1e}")
        assert error < 1e-5
        for name in wanted:  # a small part must not hide behind a large one
            assert (found[name] - wanted[name]).norm() < 1e-5 * wanted[name].norm() + 1e-12


@pytest.mark.parametrize("kind", BROKEN)
def test_an_interrupted_run_resumes_bit_for_bit(folder, kind):
    straight, broken = (everything(folder / name / kind) for name in ("straight", "broken"))
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(straight)
    assert_equal_states(straight, broken)


@pytest.mark.parametrize("kind", BROKEN)
def test_model_and_loss_are_alike_in_both(folder, kind):
    """Also the parameters and averages of a loss whose processes see different samples."""
    both = [load_file(folder / f"end-{kind}-{rank}.safetensors") for rank in range(2)]
    assert any(name.startswith("loss.") for name in both[0])
    assert_equal_states(*both)


def test_torchrun_works_as_it_is(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from nearfar.retrieval.training.evaluator import RetrievalEvaluator\n"
        "from tests.retrieval.training.runs import tiny_dataset, train\n"
        "evaluator = RetrievalEvaluator(tiny_dataset(), ['R@1'])\n"
        "result = train(Path(sys.argv[1]), 'head', gather=True, evaluator=evaluator)\n"
        # to files: what two processes print may end on one line
        "said = Path(sys.argv[1]).with_name('said-' + os.environ['RANK'] + '.json')\n"
        "said.write_text(json.dumps(result.metrics))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*command, str(script), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert said[0]
    assert said[0] == said[1]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints", "metrics.json", "model", "recipe.yaml", "run.json"
    }  # fmt: skip

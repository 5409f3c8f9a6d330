"""sentence-transformers' trainer, made exact: for the losses' own parameters, for resuming, for several processes.

What the base class leaves out and this one adds:

- The parameters of a loss (class weights, a learned scale) have their own learning rate, take part in clipping, are
  saved in checkpoints, come back on resuming and with the best model, and are alike in all processes.
- A run that is interrupted at any step and resumed ends, and logs, as the unbroken one. The base class forgets the
  losses summed since the last log entry, in several processes the epoch that data order depends on, and, where a step's
  checkpoint falls on the end of an epoch, that the epoch was still to be logged and evaluated.
- A checkpoint that is not complete, in every process, is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.util.distributed import distributed_evaluation
from torch import Tensor, nn
from transformers import TrainerCallback

from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.checkpoints import (
    LOSS_FILE,
    last_complete,
    mark_complete,
    read_tensors,
    unmark,
    write_tensors,
)
from nearfar.retrieval.training.loss_parameters import (
    average_gradients,
    load_own_state,
    losses_by_prefix,
    make_alike,
    own_parameters,
    own_state,
    regroup,
)
from nearfar.retrieval.training.processes import from_first, is_first_process, process_count, process_rank, wait_for_all


class Trainer(SentenceTransformerTrainer):
    """``SentenceTransformerTrainer`` with exact losses, checkpoints and processes.

    Args:
        loss_learning_rate: of the loss's own parameters; None for that of the model.
        options: as for ``SentenceTransformerTrainer``.
    """

    _tr_loss: Tensor  # the base class's

    def __init__(self, *, loss_learning_rate: float | None = None, **options: Any) -> None:
        self.loss_learning_rate = loss_learning_rate
        self._resumed_from: Path | None = None
        self._miner: GlobalProxyMiner | None = None
        super().__init__(**options)
        # Last, so that it sees what the others decided.
        self.add_callback(ExactResume(self))

    def attach(self, miner: GlobalProxyMiner) -> None:
        """Let a miner compose the batches; its state is part of every checkpoint."""
        miner.attach(self)
        self._miner = miner

    def loss_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the loss that are not the model's."""
        return own_state(self.loss, self.model)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """Train. All processes begin with the first one's loss."""
        make_alike(self.loss, self.model)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(Path(self.args.output_dir))
        self._resumed_from = None if not resume_from_checkpoint else Path(resume_from_checkpoint)
        return super().train(None if self._resumed_from is None else str(self._resumed_from), *args, **options)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """Forward and backward pass; before a step of the optimiser, the loss's gradients are averaged as the model's.

        This comes before clipping, which must see the same gradients everywhere.
        """
        value: Tensor = super().training_step(*args, **options)
        if self.accelerator.sync_gradients:
            average_gradients(self.loss, self.model)
        return value

    def evaluate_now(self, evaluator: Any) -> dict[str, float]:
        """An evaluator's metrics of the model as it is; several processes share the encoding."""
        found: dict[str, float] = {}
        with distributed_evaluation(self.model, enabled=process_count() > 1) as runs:
            if runs:
                measured = evaluator(self.model)
                found = measured if isinstance(measured, dict) else {"score": measured}
        return from_first(lambda: {name: float(value) for name, value in found.items()})

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """Optimiser and groups; the loss's own parameters in groups of their own."""
        kind, options = super().get_optimizer_cls_and_kwargs(args, model)
        own = own_parameters(self.loss, self.model)
        if own and isinstance(options.get("optimizer_dict"), list):
            options["optimizer_dict"] = regroup(options["optimizer_dict"], own.values(), self.loss_learning_rate)
        return kind, options

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return super()._clip_grad_norm(self._with_loss(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(self._with_loss(model), grad_norm=grad_norm)

    def _with_loss(self, model: nn.Module) -> nn.Module:
        """A module of the parameters of model and loss, each once."""
        return nn.ModuleList([model, *losses_by_prefix(self.loss).values()])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Not the base class's: it compiles a model card for every checkpoint, which takes longer than all the rest, and
        # pickles the arguments, which nobody reads and which a sampler made of a local function cannot survive.
        # Some versions of transformers come here in every process.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(str(folder), create_model_card=self.args.push_to_hub)
        if state := self.loss_state():
            write_tensors(folder / LOSS_FILE, state)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        file = Path(checkpoint_path) / LOSS_FILE
        load_own_state(self.loss, self.model, read_tensors(file), file)

    def _load_best_model(self) -> None:
        # The base class logs a failure and goes on with the last model.
        best = Path(self.state.best_model_checkpoint)
        self.model.model_card_data.set_best_model_step(int(best.name.rsplit("-", 1)[1]))
        self._load_from_checkpoint(str(best))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if is_first_process():
            unmark(checkpoint)
            checkpoint.mkdir(parents=True)
        wait_for_all()
        write_tensors(checkpoint / self._sums_file(), self._sums())
        super()._save_checkpoint(model, trial)
        if self._miner is not None:
            self._miner.save(checkpoint)
        wait_for_all()
        if is_first_process():
            mark_complete(checkpoint)

    def _sums_file(self) -> str:
        return f"sums_{process_rank()}.safetensors"

    def _sums(self) -> dict[str, Tensor]:
        """What the trainer has summed since its last log entry, in this process."""
        sums = {
            "loss": self._tr_loss,
            "total": torch.tensor(self._total_loss_scalar, dtype=torch.float64),
            "last_logged": torch.tensor(self._globalstep_last_logged),
        }
        return sums | {f"part.{name}": value for name, value in self.accum_loss_components["train"].items()}

    def restore_sums(self) -> None:
        """Go on summing where the checkpoint left off, if the run began with one."""
        if self._resumed_from is None:
            return
        sums = read_tensors(self._resumed_from / self._sums_file())
        self._tr_loss = sums.pop("loss").to(self._tr_loss.device)
        self._total_loss_scalar = sums.pop("total").item()
        self._globalstep_last_logged = int(sums.pop("last_logged"))
        # The mean loss that ends the log is over all steps, not only those since the interruption.
        self._initial_global_step = 0
        parts = {name.removeprefix("part."): value.to(self.args.device) for name, value in sums.items()}
        self.accum_loss_components["train"] = parts


class ExactResume(TrainerCallback):
    """Keeps what the base class forgets on resuming.

    Args:
        trainer: the trainer it belongs to.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.saves_after_epoch = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the sums, which the base class has just set to 0."""
        self.trainer.restore_sums()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Tell samplers the epoch at any depth: the one that skips seen batches hides those of several processes."""
        for sampler in _samplers(train_dataloader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put off a checkpoint that falls on the end of an epoch until the epoch is logged and evaluated."""
        if control.should_save and state.epoch == int(state.epoch):
            control.should_save, self.saves_after_epoch = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the checkpoint that was put off."""
        control.should_save |= self.saves_after_epoch
        self.saves_after_epoch = False


def _samplers(loader: Any) -> Iterator[Any]:
    """The batch sampler of a loader, and what it wraps."""
    waiting, seen = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)], set()
    while waiting:
        sampler = waiting.pop()
        if sampler is None or id(sampler) in seen:
            continue
        seen.add(id(sampler))
        yield sampler
        waiting += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]

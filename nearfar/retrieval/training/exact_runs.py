"""A trainer of transformers whose interrupted runs end, and log, as the unbroken ones; in several processes too.

The base class forgets the losses summed since the last log entry, in several processes the epoch that data order
depends on, and, where a step's checkpoint falls on the end of an epoch, that the epoch was still to be logged and
evaluated. It takes a checkpoint for one that is not complete in every process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.checkpoints import last_complete, mark_complete, read_tensors, unmark, write_tensors
from nearfar.retrieval.training.processes import is_first_process, process_rank, wait_for_all
from nearfar.retrieval.training.progress import RichProgress

_TIMINGS = ("_runtime", "_per_second", "_flos")


class ExactRuns(Trainer):
    """A trainer of its own, or put before another class made of ``transformers.Trainer`` among the bases of one."""

    _tr_loss: Tensor  # the base class's

    def __init__(self, **options: Any) -> None:
        self._resumed_from: Path | None = None
        self._miner: GlobalProxyMiner | None = None
        super().__init__(**options)
        # Last, so that it sees what the others decided.
        self.add_callback(ExactResume(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the last complete checkpoint, if there is one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(Path(self.args.output_dir))
        self._resumed_from = None if not resume_from_checkpoint else Path(resume_from_checkpoint)
        return super().train(None if self._resumed_from is None else str(self._resumed_from), *args, **options)

    def run(self, checkpoint: Path | None, show_progress: bool) -> list[dict[str, float]]:
        """Train, from a checkpoint if given, and return the log without times, which a second run would not repeat."""
        progress = RichProgress() if show_progress and is_first_process() else None
        if progress is not None:
            self.add_callback(progress)
        with nullcontext() if progress is None else progress:
            self.train(resume_from_checkpoint=checkpoint)
        return [
            {name: value for name, value in entry.items() if not name.endswith(_TIMINGS)}
            for entry in self.state.log_history
        ]

    def part_sums(self) -> dict[str, Tensor]:
        """What else is summed from one log entry to the next, by name."""
        return {}

    def restore_part_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Go on with what ``part_sums`` gave."""

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
        return sums | {f"part.{name}": value for name, value in self.part_sums().items()}

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
        self.restore_part_sums({name.removeprefix("part."): value.to(self.args.device) for name, value in sums.items()})


class ExactResume(TrainerCallback):
    """Keeps what the base class forgets on resuming.

    Args:
        trainer: the trainer it belongs to.
    """

    def __init__(self, trainer: ExactRuns) -> None:
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

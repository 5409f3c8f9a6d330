"""What happens between the steps of a run: more checkpoints, an early end."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from nearfar.errors import InputError
from nearfar.retrieval.training.options import TrainingOptions


class SaveEvery(TrainerCallback):
    """A checkpoint every so many steps, besides those of the trainer's own strategy.

    Args:
        steps: between two checkpoints.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint."""
        control.should_save |= state.global_step % self.steps == 0


class EarlyStopping(TrainerCallback):
    """End the training when a metric no longer gets better.

    It reads the log, which checkpoints keep, so that a resumed run ends where the unbroken one would have.

    Args:
        metric: its name in the log.
        greater_is_better: whether it should rise.
        patience: evaluations without a new best value before the end.
    """

    def __init__(self, metric: str, greater_is_better: bool, patience: int) -> None:
        self.metric, self.sign, self.patience = metric, 1 if greater_is_better else -1, patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the evaluations since the best one."""
        values = [self.sign * entry[self.metric] for entry in state.log_history if self.metric in entry]
        best, since = -math.inf, 0
        for value in values:
            # NaN is never better.
            best, since = (value, 0) if value > best else (best, since + 1)
        control.should_training_stop |= since >= self.patience


def callbacks_for(options: TrainingOptions, best: tuple[str, bool] | None) -> list[TrainerCallback]:
    """The callbacks that options ask for.

    Args:
        options: the options.
        best: the metric that decides which model is kept, and whether more is better; None without an evaluator.

    Raises:
        InputError: for ``patience`` without an evaluator.
    """
    found: list[TrainerCallback] = []
    if options.save_every is not None:
        found.append(SaveEvery(options.save_every))
    if options.patience is not None:
        if best is None:
            raise InputError(f"patience={options.patience} needs an evaluator to watch")
        found.append(EarlyStopping(f"eval_{best[0]}", best[1], options.patience))
    return found

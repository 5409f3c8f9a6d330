"""A progress bar for training."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class RichProgress(TrainerCallback):
    """Steps, epoch, last loss and remaining time, in one line on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("training")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar, from the step a resumed run begins with."""
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show epoch and loss."""
        loss = (logs or {}).get("loss")
        if loss is not None:
            self._progress.update(self._task, description=f"training, epoch {state.epoch:.1f}, loss {float(loss):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hide the bar."""
        self._progress.stop()

    def close(self) -> None:
        """Give the terminal back after an interruption."""
        self._progress.stop()

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Checkpoints that are whole or do not count, and what they hold beyond the trainer's own.

The trainer writes a checkpoint file by file, several processes each their own. A marker, written last of all, says that
it is complete. Between two log entries the trainer sums losses; these sums are saved too, so that a run interrupted in
the middle of an epoch logs what the unbroken one logs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

MARKER = "complete"
LOSS_FILE = "loss.safetensors"


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of the checkpoint is there."""
    (checkpoint / MARKER).touch()


def unmark(checkpoint: Path) -> None:
    """Remove what an earlier, perhaps interrupted, run left under this name; its marker goes first."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def last_complete(checkpoints: Path, last_file: str = MARKER) -> Path | None:
    """The newest checkpoint of a folder that holds the file written last."""
    found = [path for path in checkpoints.glob("checkpoint-*") if (path / last_file).exists()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def remove_incomplete(checkpoints: Path, last_file: str = MARKER) -> None:
    """Clear what interrupted writing left."""
    for path in checkpoints.glob("checkpoint-*"):
        if not (path / last_file).exists():
            unmark(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name; the file is whole or absent."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    # Copies, since tensors that share memory are refused.
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, partial)
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name; none where there is no file."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path) if path.exists() else {}
    return tensors

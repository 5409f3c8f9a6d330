"""The folder of a training run: what was asked for, its checkpoints, its model and its metrics."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from nearfar.errors import InputError

_RECIPE = "recipe.json"
_METRICS = "metrics.json"


class RunFolder:
    """A run's files.

    Args:
        path: the folder; it is made when missing.

    Attributes:
        checkpoints: the trainer's checkpoints.
        model: the finished model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def begin(self, recipe: dict[str, Any], resume: bool) -> Path | None:
        """Record the recipe, and return the checkpoint to go on from, if any.

        Raises:
            InputError: the folder holds a run already and ``resume`` is off, or a run of another recipe.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(
                f"output_dir={str(self.path)!r} cannot be made: {error.strerror}; choose another"
            ) from error
        earlier = self._earlier_recipe()
        if earlier is not None and not resume:
            raise InputError(
                f"output_dir={str(self.path)!r} holds a run already; resume it with resume=True, "
                "or choose another folder"
            )
        if earlier is not None and earlier != recipe:
            changed = sorted(k for k in {*earlier, *recipe} if earlier.get(k) != recipe.get(k))
            raise InputError(
                f"output_dir={str(self.path)!r} holds a run of another recipe ({', '.join(changed)} differ); "
                "resume with the same settings, or choose another folder"
            )
        write_json(self.path / _RECIPE, recipe)
        return self._last_checkpoint()

    def finish(self, model: Any, metrics: dict[str, Any]) -> None:
        """Put the model and its metrics in place; a half-written model never bears the final name."""
        partial = self.path / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial))
        shutil.rmtree(self.model, ignore_errors=True)
        partial.replace(self.model)
        write_json(self.path / _METRICS, metrics)

    def _earlier_recipe(self) -> dict[str, Any] | None:
        file = self.path / _RECIPE
        if not file.exists():
            return None
        try:
            recipe: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}); remove the folder, or choose another") from error
        return recipe

    def _last_checkpoint(self) -> Path | None:
        # A checkpoint is complete once the trainer has written its state, the last file.
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
        return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is either the old one or the new one, never half."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)

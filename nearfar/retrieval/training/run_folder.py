"""The folder of a training run: what was asked for, its checkpoints, its model and its metrics.

Several processes may train one run: the first of them reads and writes, the others learn what it found.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from nearfar.errors import InputError
from nearfar.retrieval.training.checkpoints import LOSS_FILE, last_complete, remove_incomplete, write_tensors
from nearfar.retrieval.training.processes import from_first, wait_for_all

RECIPE = "recipe.yaml"
_FACTS = "run.json"
_METRICS = "metrics.json"
_MAY_DIFFER = ("versions",)


class RunFolder:
    """A run's files.

    Args:
        path: the folder; it is made when missing.
        last_file: the file that the trainer writes last of all into a checkpoint; one without it is not complete.

    Attributes:
        checkpoints: the trainer's checkpoints.
        model: the finished model.
    """

    def __init__(self, path: str | Path, last_file: str = "trainer_state.json") -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self._last_file = last_file

    def begin(self, recipe: Mapping[str, Any], resume: bool, facts: Mapping[str, Any] | None = None) -> Path | None:
        """Record the recipe, and return the checkpoint to go on from, if any.

        Args:
            recipe: what was asked for, in plain values.
            resume: go on with the run that the folder holds.
            facts: what else the run rests on: data, loss, versions, processes.

        Raises:
            InputError: the folder holds a run already and ``resume`` is off, or a run of another recipe.
        """
        found = from_first(lambda: self._begin(dict(recipe), resume, dict(facts or {})))
        return None if found is None else self.checkpoints / found

    def finish(self, model: Any, metrics: dict[str, Any], loss_state: Mapping[str, Tensor] | None = None) -> None:
        """Put the model, its loss's parameters and its metrics in place.

        A half-written model never bears the final name.
        """
        from_first(lambda: self._finish(model, metrics, loss_state or {}))
        wait_for_all()

    def _begin(self, recipe: dict[str, Any], resume: bool, facts: dict[str, Any]) -> str | None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(
                f"output_dir={str(self.path)!r} cannot be made: {error.strerror}; choose another"
            ) from error
        file = self.path / RECIPE
        # As it will be read: lists for tuples, and so on.
        recipe, facts = yaml.safe_load(_as_yaml(recipe)), json.loads(json.dumps(facts))
        if file.exists():
            self._compare(recipe, facts, resume)
        else:
            _write(file, _as_yaml(recipe))
        write_json(self.path / _FACTS, facts)
        remove_incomplete(self.checkpoints, self._last_file)
        last = last_complete(self.checkpoints, self._last_file)
        return None if last is None else last.name

    def _compare(self, recipe: dict[str, Any], facts: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise InputError(
                f"output_dir={str(self.path)!r} holds a run already; resume it with resume=True, "
                "or choose another folder"
            )
        try:
            earlier = yaml.safe_load((self.path / RECIPE).read_text(encoding="utf-8"))
            earlier |= json.loads((self.path / _FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise InputError(
                f"output_dir={str(self.path)!r} holds a run that cannot be read ({error}); choose another folder"
            ) from error
        now = {**recipe, **facts}
        changed = sorted(key for key in {*earlier, *now} if earlier.get(key) != now.get(key))
        if changed := [key for key in changed if key not in _MAY_DIFFER]:
            raise InputError(
                f"output_dir={str(self.path)!r} holds a run of another recipe ({', '.join(changed)} differ); "
                "resume with the same settings, or choose another folder"
            )

    def _finish(self, model: Any, metrics: dict[str, Any], loss_state: Mapping[str, Tensor]) -> None:
        partial = self.path / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial))
        if loss_state:
            write_tensors(partial / LOSS_FILE, loss_state)
        shutil.rmtree(self.model, ignore_errors=True)
        partial.replace(self.model)
        write_json(self.path / _METRICS, metrics)


def plain(value: Any) -> Any:
    """A value as a recipe can hold it; what is not plain by its class or name."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return getattr(value, "__name__", type(value).__name__)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is either the old one or the new one, never half."""
    _write(path, json.dumps(content, indent=2, sort_keys=True))


def _as_yaml(content: Any) -> str:
    # Through JSON, so that nothing but plain values is written.
    text: str = yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True)
    return text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)

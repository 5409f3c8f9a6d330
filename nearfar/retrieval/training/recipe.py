"""A training run as a YAML file: what ``nearfar train`` reads, and what every run's folder keeps."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from pydantic import Field

from nearfar.data import (
    LabelledTexts,
    TrainingPairs,
    is_mined,
    load_beir,
    load_labelled,
    load_mined,
    load_pairs,
    pairs_from_dataset,
)
from nearfar.errors import DataFileError, InputError, UnknownNameError
from nearfar.retrieval.training.options import TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from nearfar.miners import GlobalProxyMiner
    from nearfar.retrieval.training.fine_tune import FineTuneResult

SUFFIXES = (".yaml", ".yml")


class Recipe(TrainingOptions):
    """Everything that a training run rests on. Paths are relative to the working directory.

    The other fields are those of ``TrainingOptions``.

    Args:
        model: folder or name of a sentence-transformers model.
        data: pairs or labelled texts (JSONL, CSV, Parquet), what ``nearfar mine`` wrote, or a BEIR folder with train
            judgements; several by name.
        output: folder of the run. A run's own recipe does not hold it.
        loss: a name that ``get_loss`` knows; "decoupled-softmax". By data set when each has one.
        loss_options: the loss's options.
        dev: BEIR folder that is searched at every epoch; the best epoch is kept.
        dev_split: its judgements, ``qrels/<dev_split>.tsv``; "dev".
        dev_texts: labelled texts whose neighbours are measured at every epoch; decide which epoch is best when there
            is no `dev`.
        epochs: passes over the data; 1.
        batch_size: rows per step and process; 64.
        learning_rate: peak rate; 2e-5 suits transformers, static embeddings want about 5e-2.
        loss_learning_rate: of the loss's own parameters; that of the model when None.
        warmup_share: share of the steps with a rising rate; 0.1.
        batch_sampler: "batch_sampler" (random), "no_duplicates" or "group_by_label".
        miner: options of a ``GlobalProxyMiner`` that composes the batches, ``{}`` for its defaults; None (no miner).
        seed: of data order, dropout and new layers; 0.
        trainer_args: further arguments of sentence-transformers' trainer.

    Raises:
        InputError: for a value that is missing or out of range.
        UnknownNameError: for a key that does not exist, with near names suggested.

    Example:
        >>> from nearfar.retrieval import Recipe
        >>> Recipe(model="all-MiniLM-L6-v2", data="pairs.jsonl", output="run", loss="circle").batch_size
        64
    """

    kind: ClassVar[str] = "key of a recipe"

    model: str
    data: str | dict[str, str]
    output: str
    loss: str | dict[str, str] = "decoupled-softmax"
    loss_options: dict[str, Any] = Field(default_factory=dict)
    dev: str | None = None
    dev_split: str = "dev"
    dev_texts: str | None = None
    epochs: float = Field(default=1, gt=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    loss_learning_rate: float | None = Field(default=None, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    batch_sampler: str = "batch_sampler"
    miner: dict[str, Any] | None = None
    seed: int = Field(default=0, ge=0)
    trainer_args: dict[str, Any] = Field(default_factory=dict)


def run_recipe(recipe: Recipe, *, resume: bool = False, show_progress: bool = True) -> FineTuneResult:
    """Train as the recipe says.

    Args:
        recipe: what to do.
        resume: go on from the last complete checkpoint in its output folder.
        show_progress: draw a progress bar on standard error.

    Raises:
        InputError: as ``fine_tune``; for data that cannot be read a ``DataFileError``.
    """
    from nearfar.retrieval.training.fine_tune import fine_tune

    rows: Any = (
        load_rows(recipe.data)
        if isinstance(recipe.data, str)
        else {name: load_rows(path) for name, path in recipe.data.items()}
    )
    options = {name: getattr(recipe, name) for name in TrainingOptions.model_fields}
    return fine_tune(
        recipe.model,
        rows,
        loss=recipe.loss,
        loss_options=recipe.loss_options,
        output_dir=recipe.output,
        evaluator=_evaluators(recipe),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        loss_learning_rate=recipe.loss_learning_rate,
        warmup_share=recipe.warmup_share,
        batch_sampler=recipe.batch_sampler,
        miner=None if recipe.miner is None else _miner(recipe.miner),
        seed=recipe.seed,
        resume=resume,
        show_progress=show_progress,
        options=TrainingOptions(**options),
        trainer_args=recipe.trainer_args,
        origin={name: getattr(recipe, name) for name in ("data", "dev", "dev_split", "dev_texts")},
    )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values in a recipe's file, not yet checked, so that others may still be put over them.

    Raises:
        DataFileError: when it cannot be read, or is not a table of keys and values.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise DataFileError(path, f"cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise DataFileError(path, f"is not YAML: {problem}", None if mark is None else mark.line + 1) from error
    if not isinstance(content, dict):
        raise DataFileError(path, "holds no keys; a recipe is lines of key: value, such as loss: circle")
    return {str(key): value for key, value in content.items()}


def set_values(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """A recipe's values with others put over them.

    Args:
        values: as ``read_recipe`` gives them.
        words: ``key=value``, the value in JSON or plain text; a dot leads into a table: ``loss_options.gamma=64``.

    Raises:
        InputError: for words of another form.

    Example:
        >>> set_values({"loss": "circle"}, ["loss_options.gamma=64", "epochs=2"])
        {'loss': 'circle', 'loss_options': {'gamma': 64}, 'epochs': 2}
    """
    changed: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    for word in words:
        key, equals, text = word.partition("=")
        *path, last = key.split(".")
        if not equals or not all([*path, last]):
            raise InputError(f"{word!r} is not key=value, for example loss_options.gamma=64")
        table = changed
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise InputError(f"{word!r}: {part} is {table!r}, not a table of keys")
        try:
            table[last] = json.loads(text)
        except ValueError:
            table[last] = text
    return changed


def load_rows(path: str | Path) -> TrainingPairs | LabelledTexts | Dataset:
    """Pairs, labelled texts or mined rows, told apart by the columns of the file; train judgements of a BEIR folder.

    Raises:
        DataFileError: when it is neither.
    """
    if Path(path).is_dir():
        return pairs_from_dataset(load_beir(path, "train"))
    if is_mined(path):
        return load_mined(path)
    try:
        return load_pairs(path)
    except DataFileError as no_pairs:
        try:
            return load_labelled(path)
        except DataFileError as no_labels:
            # The complaint that came later in the file belongs to the format that was meant.
            raise (no_labels if (no_labels.line or 0) > (no_pairs.line or 0) else no_pairs) from None


def _miner(options: dict[str, Any]) -> GlobalProxyMiner:
    from nearfar.miners import GlobalProxyMiner

    known = inspect.signature(GlobalProxyMiner).parameters
    for name in options:
        if name not in known:
            raise UnknownNameError("option of the miner", name, known)
    return GlobalProxyMiner(**options)


def _evaluators(recipe: Recipe) -> list[Any]:
    from nearfar.retrieval.training.evaluator import ClassEvaluator, RetrievalEvaluator

    found: list[Any] = []
    if recipe.dev is not None:
        found.append(RetrievalEvaluator(load_beir(recipe.dev, recipe.dev_split)))
    if recipe.dev_texts is not None:
        found.append(ClassEvaluator(load_labelled(recipe.dev_texts)))
    return found


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a word; here it is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)

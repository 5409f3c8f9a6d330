"""Fine-tune an embedding model with any loss of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import nn
from transformers import PrinterCallback

from nearfar.errors import InputError
from nearfar.losses import ForSentenceTransformer, Loss, get_loss
from nearfar.losses.registry import wants_sizes
from nearfar.retrieval.training.columns import as_columns
from nearfar.retrieval.training.progress import RichProgress
from nearfar.retrieval.training.randomness import preserved_random_state
from nearfar.retrieval.training.run_folder import RunFolder
from nearfar.retrieval.training.trainer import Trainer

LossChoice = str | nn.Module | Callable[[Any], nn.Module]


@dataclass(frozen=True)
class FineTuneResult:
    """What a run leaves.

    Attributes:
        model: the trained model; the best one when an evaluator was given.
        metrics: the evaluator's metrics of that model, by name; empty without an evaluator.
        history: the trainer's log: losses, and metrics at every epoch.
        output_dir: the run's folder: ``model``, ``checkpoints``, ``recipe.json``, ``metrics.json``.
    """

    model: SentenceTransformer
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def fine_tune(
    model: SentenceTransformer | str | Path,
    train: Any,
    *,
    loss: LossChoice,
    output_dir: str | Path,
    loss_options: Mapping[str, Any] | None = None,
    evaluator: Any = None,
    epochs: float = 1,
    batch_size: int = 256,
    learning_rate: float = 2e-5,
    warmup_share: float = 0.1,
    batch_sampler: str | Callable[..., Any] = "batch_sampler",
    seed: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    trainer_args: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> FineTuneResult:
    """Fine-tune an embedding model on sentence-transformers' trainer.

    A checkpoint is written after every epoch. An interrupted run goes on from the last one with ``resume=True`` and
    ends as it would have without the interruption.

    Args:
        model: a model, trained in place, or the name or folder of one.
        train: ``TrainingPairs``, ``LabelledTexts``, a list of text tuples (query, document, negatives ...), or a
            ``datasets.Dataset`` with the columns the loss expects.
        loss: a name that ``get_loss`` knows ("circle", "st:MultipleNegativesRankingLoss"), a loss, or a function
            that takes the model and returns a module for the trainer.
        output_dir: folder of the run.
        loss_options: options of a loss given by name.
        evaluator: an evaluator of sentence-transformers, for example ``RetrievalEvaluator``; called at every epoch,
            and its primary metric decides which model is kept.
        epochs: passes over the data.
        batch_size: rows per step.
        learning_rate: peak rate; 2e-5 suits transformers (sentence-transformers' usual), static embeddings want about
            5e-2.
        warmup_share: share of the steps during which the rate rises linearly; it then falls linearly to 0.
        batch_sampler: "batch_sampler" (random), "no_duplicates", "group_by_label", or a factory of samplers as
            sentence-transformers defines it.
        seed: of data order, dropout and new layers. Global generators are left as they were.
        resume: go on from the last checkpoint in ``output_dir``, if there is one.
        show_progress: draw a progress bar on standard error.
        trainer_args: further arguments for ``SentenceTransformerTrainingArguments``; they win over those above.
        callbacks: further callbacks for the trainer.

    Returns:
        The trained model with its metrics.

    Raises:
        InputError: for empty data, numbers out of range, an output folder that is in use, or a loss that does not fit
            the data.
        UnknownNameError: for an unknown loss, with near names suggested.

    Example:
        >>> import tempfile
        >>> from nearfar.data import TrainingPairs, demo_model
        >>> from nearfar.retrieval import fine_tune
        >>> pairs = TrainingPairs(["shaky hands", "blue lips"], ["Tremor", "Cyanosis"], ["a", "b"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = fine_tune(demo_model(), pairs, loss="decoupled-softmax", output_dir=folder,
        ...                        batch_size=2, learning_rate=1e-2, show_progress=False)
        >>> round(result.history[-1]["epoch"])
        1
    """
    _check_numbers(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    if not isinstance(model, SentenceTransformer):
        from nearfar.retrieval.encoders import load_encoder

        model = load_encoder(model)
    with preserved_random_state():
        from_nearfar = not isinstance(loss, str) or not loss.startswith("st:")
        dataset = as_columns(train, with_labels=from_nearfar)
        options = _with_sizes(loss, dict(loss_options or {}), model, dataset)
        bound = _bind_loss(model, loss, options, seed)
        folder = RunFolder(output_dir)
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup_share": warmup_share,
            "seed": seed,
            "batch_sampler": batch_sampler if isinstance(batch_sampler, str) else type(batch_sampler).__name__,
        }
        recipe = {**settings, "loss": describe_loss(bound), "rows": len(dataset), "columns": dataset.column_names}
        checkpoint = folder.begin(recipe, resume)
        arguments = _arguments(folder, settings, batch_sampler, evaluator, dict(trainer_args or {}))
        trainer = _make_trainer(model, arguments, dataset, bound, evaluator, [*callbacks])
        _run(trainer, show_progress, checkpoint)
        history = [dict(entry) for entry in trainer.state.log_history]
        metrics = _evaluate(evaluator, model)
        folder.finish(model, {"metrics": metrics, "history": history})
    return FineTuneResult(model, metrics, history, folder.path)


def _with_sizes(loss: LossChoice, options: dict[str, Any], model: SentenceTransformer, dataset: Any) -> dict[str, Any]:
    """Fill in the number of classes and the embedding size of a loss that wants them, from the data and the model."""
    if not isinstance(loss, str) or loss.startswith("st:") or not wants_sizes(loss):
        return options
    if "num_classes" not in options:
        if "label" not in dataset.column_names:
            raise InputError(f"loss {loss!r} learns from classes; the training data has no label column")
        options["num_classes"] = max(dataset["label"]) + 1
    return {"embedding_size": model.get_embedding_dimension(), **options}


def describe_loss(loss: nn.Module) -> dict[str, Any]:
    """A loss as a recipe states it: its class and settings."""
    inner = loss.loss if isinstance(loss, ForSentenceTransformer) else loss
    settings = inner.settings() if isinstance(inner, Loss) else {}
    return {"class": f"{type(inner).__module__.split('.')[0]}.{type(inner).__name__}", **settings}


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(f"{name}={value!r} must be above 0")


def _bind_loss(model: SentenceTransformer, loss: LossChoice, options: dict[str, Any], seed: int) -> nn.Module:
    """A module that the trainer can call: tied to the model, its own parameters drawn from the seed."""
    torch.manual_seed(seed)
    if isinstance(loss, str):
        loss = get_loss(loss, **options)
    elif options:
        raise InputError("loss_options go with a loss given by name; this loss is made already")
    if not isinstance(loss, nn.Module):
        return loss(model)
    # A loss that owns a model, ForSentenceTransformer included, is ready for the trainer.
    return loss if hasattr(loss, "model") else ForSentenceTransformer(model, loss)


def _arguments(
    folder: RunFolder,
    settings: Mapping[str, Any],
    batch_sampler: Any,
    evaluator: Any,
    extra: dict[str, Any],
) -> SentenceTransformerTrainingArguments:
    when = "epoch" if settings["epochs"] >= 1 else "no"
    arguments: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "warmup_steps": settings["warmup_share"],
        "batch_sampler": batch_sampler,
        "seed": settings["seed"],
        "save_strategy": when,
        "save_total_limit": 2,
        "eval_strategy": when if evaluator is not None else "no",
        "logging_strategy": "epoch",
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    if evaluator is not None and when != "no":
        metric = evaluator.primary_metric
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": f"eval_{metric}"}
        arguments |= {"greater_is_better": evaluator.greater_is_better}
    return SentenceTransformerTrainingArguments(**{**arguments, **extra})


def _make_trainer(
    model: SentenceTransformer,
    arguments: SentenceTransformerTrainingArguments,
    dataset: Any,
    loss: nn.Module,
    evaluator: Any,
    callbacks: list[Any],
) -> Trainer:
    card = model.model_card_data
    # Without examples of its own the card would search the whole training set for some.
    card.widget = card.widget or [{"text": ""}]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset, loss=loss, evaluator=evaluator, callbacks=callbacks
    )
    card.widget = [example for example in card.widget if example["text"]]
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: Trainer, show_progress: bool, checkpoint: Path | None) -> None:
    progress = RichProgress() if show_progress else None
    if progress is not None:
        trainer.add_callback(progress)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if progress is not None:
            progress.close()


def _evaluate(evaluator: Any, model: SentenceTransformer) -> dict[str, float]:
    if evaluator is None:
        return {}
    found = evaluator(model)
    return {name: float(value) for name, value in found.items()} if isinstance(found, dict) else {"score": float(found)}

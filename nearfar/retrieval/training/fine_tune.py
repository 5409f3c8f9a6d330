"""Fine-tune an embedding model with any loss of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PrinterCallback

from nearfar.errors import InputError
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.arguments import training_arguments
from nearfar.retrieval.training.binding import (
    LossChoice,
    bind_losses,
    check_miner,
    describe_loss,
    describe_losses,
    reads_classes,
)
from nearfar.retrieval.training.callbacks import callbacks_for
from nearfar.retrieval.training.checkpoints import MARKER
from nearfar.retrieval.training.columns import as_columns, describe_data
from nearfar.retrieval.training.evaluator import evaluator_list
from nearfar.retrieval.training.options import TrainingOptions, check_positive
from nearfar.retrieval.training.processes import process_count
from nearfar.retrieval.training.randomness import preserved_random_state
from nearfar.retrieval.training.run_folder import RunFolder, plain
from nearfar.retrieval.training.selection import add_adapters, frozen
from nearfar.retrieval.training.trainer import Trainer
from nearfar.retrieval.training.versions import versions

__all__ = ["FineTuneResult", "LossChoice", "describe_loss", "fine_tune"]


@dataclass(frozen=True)
class FineTuneResult:
    """What a run leaves.

    Attributes:
        model: the trained model; the best one when an evaluator was given.
        metrics: the evaluators' metrics of that model, by name; empty without an evaluator.
        history: the trainer's log, without times: losses, gradient norms, and metrics at every epoch.
        output_dir: the run's folder: ``model`` (with ``loss.safetensors``, the loss's own parameters), ``checkpoints``,
            ``recipe.yaml``, ``run.json``, ``metrics.json``.
    """

    model: SentenceTransformer
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def fine_tune(
    model: SentenceTransformer | nn.Module | str | Path,
    train: Any,
    *,
    loss: LossChoice | Mapping[str, LossChoice],
    output_dir: str | Path,
    loss_options: Mapping[str, Any] | None = None,
    evaluator: Any = None,
    epochs: float = 1,
    batch_size: int = 256,
    learning_rate: float = 2e-5,
    loss_learning_rate: float | None = None,
    warmup_share: float = 0.1,
    batch_sampler: str | Callable[..., Any] = "batch_sampler",
    miner: GlobalProxyMiner | None = None,
    seed: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    options: TrainingOptions | None = None,
    trainer_args: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    origin: Mapping[str, Any] | None = None,
) -> FineTuneResult:
    """Fine-tune an embedding model on sentence-transformers' trainer.

    A checkpoint is written after every epoch. A run interrupted at any step goes on from the last one with
    ``resume=True`` and ends, bit for bit, as it would have without the interruption.

    The loss's own parameters (class weights, a learned scale) are trained, clipped, saved and restored with the model.

    Started by ``torchrun`` in several processes, each calls this function; the first one writes. Losses made with
    ``gather_across_devices=True`` then see the batches of all as one.

    Args:
        model: a model, trained in place, or the name or folder of one; or any ``torch.nn.Module`` that maps a batch of
            inputs to embeddings, see ``nearfar.retrieval.training.modules``.
        train: ``TrainingPairs``, ``LabelledTexts``, a list of text tuples (query, document, negatives ...), a
            ``datasets.Dataset`` with the columns the loss expects; or several of these by name. For a
            ``torch.nn.Module``, ``TensorData`` or any data set of pairs (input, label).
        loss: a name that ``get_loss`` knows ("circle", "st:MultipleNegativesRankingLoss"), a loss, or a function
            that takes the model and returns a module for the trainer. With several data sets also one for each.
        output_dir: folder of the run.
        loss_options: options of a loss given by name; by data set when each has a loss. The ``guide`` of a loss may be
            the name or folder of a model.
        evaluator: an evaluator of sentence-transformers, for example ``RetrievalEvaluator``, or several; called at
            every epoch. The primary metric of the first decides which model is kept.
        epochs: passes over the data.
        batch_size: rows per step and process.
        learning_rate: peak rate; 2e-5 suits transformers (sentence-transformers' usual), static embeddings want about
            5e-2.
        loss_learning_rate: peak rate of the loss's own parameters; that of the model when None.
        warmup_share: share of the steps during which the rate rises linearly; it then falls linearly to 0.
        batch_sampler: "batch_sampler" (random), "no_duplicates", "group_by_label", or a factory of samplers as
            sentence-transformers defines it.
        miner: composes the batches of every epoch of classes that the model confuses, in place of `batch_sampler`.
        seed: of data order, dropout and new layers. Global generators are left as they were.
        resume: go on from the last complete checkpoint in ``output_dir``, if there is one.
        show_progress: draw a progress bar on standard error.
        options: further options.
        trainer_args: further arguments for ``SentenceTransformerTrainingArguments``; they win over all others.
        callbacks: further callbacks for the trainer.
        origin: what the run's recipe says of where model and data come from; ``nearfar train`` gives it.

    Returns:
        The trained model with its metrics.

    Raises:
        InputError: for empty data, numbers out of range, an output folder that is in use, or a loss that does not fit
            the data.
        UnknownNameError: for an unknown loss, with near names suggested.
        MissingDependencyError: for an option whose package is not installed.

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
    if isinstance(model, nn.Module) and not isinstance(model, SentenceTransformer):
        from nearfar.retrieval.training.modules import fine_tune_module

        return fine_tune_module(
            model,
            train,
            loss=loss,
            output_dir=output_dir,
            loss_options=loss_options,
            evaluator=evaluator,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            loss_learning_rate=loss_learning_rate,
            warmup_share=warmup_share,
            batch_sampler=batch_sampler,
            miner=miner,
            seed=seed,
            resume=resume,
            show_progress=show_progress,
            options=options,
            trainer_args=trainer_args,
            callbacks=callbacks,
        )
    check_miner(miner, batch_sampler)
    check_positive(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    if loss_learning_rate is not None:
        check_positive(loss_learning_rate=loss_learning_rate)
    options = options or TrainingOptions()
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "loss_learning_rate": loss_learning_rate,
        "warmup_share": warmup_share,
        "seed": seed,
        "batch_sampler": batch_sampler if isinstance(batch_sampler, str) else type(batch_sampler).__name__,
        "miner": None if miner is None else miner.settings(),
    }
    extra = dict(trainer_args or {})
    recipe = _recipe(model, loss, loss_options, settings, options, extra, origin)
    model = _loaded(model)
    evaluators = evaluator_list(evaluator)
    folder = RunFolder(output_dir, last_file=MARKER)
    with preserved_random_state(), frozen(model, options.freeze):
        if options.lora is not None:
            add_adapters(model, options.lora, seed)
        dataset = _tables(train, loss)
        bound = bind_losses(model, loss, loss_options or {}, dataset, options, seed, miner)
        best = (evaluators[0].primary_metric, evaluators[0].greater_is_better) if evaluators else None
        arguments = training_arguments(folder.checkpoints, settings, options, batch_sampler, best, extra)
        facts = {
            "loss": describe_losses(bound),
            "data": describe_data(dataset),
            "processes": process_count(),
            "versions": versions(),
        }
        checkpoint = folder.begin(recipe, resume, facts)
        trainer = _make_trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            loss=bound,
            loss_learning_rate=loss_learning_rate,
            evaluator=evaluators or None,
            callbacks=[*callbacks, *callbacks_for(options, best)],
        )
        if miner is not None:
            trainer.attach(miner)
        history = trainer.run(checkpoint, show_progress)
        metrics = {name: value for each in evaluators for name, value in trainer.evaluate_now(each).items()}
        folder.finish(model, {"metrics": metrics, "history": history}, trainer.loss_state())
    return FineTuneResult(model, metrics, history, folder.path)


def _loaded(model: SentenceTransformer | str | Path) -> SentenceTransformer:
    if isinstance(model, SentenceTransformer):
        return model
    from nearfar.retrieval.encoders import load_encoder

    return load_encoder(model)


def _recipe(
    model: Any,
    loss: Any,
    loss_options: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    options: TrainingOptions,
    trainer_args: Mapping[str, Any],
    origin: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What was asked for, in plain values; what is not plain by its class."""
    named = {name: plain(each) for name, each in loss.items()} if isinstance(loss, Mapping) else plain(loss)
    # A model or data in memory has no name; a recipe without them cannot be run again as it is.
    source = {} if isinstance(model, SentenceTransformer) else {"model": str(model)}
    return {
        **source,
        **(origin or {}),
        "loss": named,
        "loss_options": {name: plain(value) for name, value in (loss_options or {}).items()},
        **settings,
        **options.model_dump(mode="json"),
        "trainer_args": {name: plain(value) for name, value in trainer_args.items()},
    }


def _tables(train: Any, loss: Any) -> Any:
    """A ``Dataset``, or a ``DatasetDict`` of several."""
    if not isinstance(train, Mapping):
        return as_columns(train, with_labels=reads_classes(loss))
    from datasets import DatasetDict

    if not train:
        raise InputError("train holds no data set")
    choices = loss if isinstance(loss, Mapping) else dict.fromkeys(train, loss)
    tables = {name: as_columns(rows, with_labels=reads_classes(choices.get(name))) for name, rows in train.items()}
    return DatasetDict(tables)


def _make_trainer(*, model: SentenceTransformer, **options: Any) -> Trainer:
    card = model.model_card_data
    # Without examples of its own the card would search the whole training set for some.
    card.widget = card.widget or [{"text": ""}]
    trainer = Trainer(model=model, **options)
    card.widget = [example for example in card.widget if example["text"]]
    trainer.remove_callback(PrinterCallback)
    return trainer

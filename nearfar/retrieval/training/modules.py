"""Fine-tune any ``torch.nn.Module`` on tensors with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback, TrainerCallback

from nearfar.errors import InputError
from nearfar.losses import get_loss
from nearfar.losses.combine import capabilities_of
from nearfar.losses.registry import wants_sizes
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.arguments import training_arguments
from nearfar.retrieval.training.binding import check_miner
from nearfar.retrieval.training.callbacks import callbacks_for
from nearfar.retrieval.training.checkpoints import MARKER
from nearfar.retrieval.training.evaluator import evaluator_list
from nearfar.retrieval.training.fine_tune import FineTuneResult, describe_loss
from nearfar.retrieval.training.module_trainer import ModuleTrainer, ModuleWithLoss, SamplerFactory
from nearfar.retrieval.training.options import TrainingOptions, check_positive
from nearfar.retrieval.training.processes import process_count
from nearfar.retrieval.training.randomness import preserved_random_state
from nearfar.retrieval.training.run_folder import RunFolder, plain
from nearfar.retrieval.training.selection import frozen
from nearfar.retrieval.training.tensor_data import check_data, describe_tensors, embed, labels_of
from nearfar.retrieval.training.versions import versions

_PROBE = 2  # samples embedded to learn the embedding size
_FOR_TEXTS = ("mini_batch_size", "matryoshka_dimensions", "lora")


def fine_tune_module(
    module: nn.Module,
    train: Dataset[Any],
    *,
    loss: Any,
    output_dir: str | Path,
    loss_options: Mapping[str, Any] | None = None,
    evaluator: Any = None,
    epochs: float = 1,
    batch_size: int = 256,
    learning_rate: float = 2e-5,
    loss_learning_rate: float | None = None,
    warmup_share: float = 0.1,
    batch_sampler: str | SamplerFactory = "batch_sampler",
    miner: GlobalProxyMiner | None = None,
    seed: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    options: TrainingOptions | None = None,
    trainer_args: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FineTuneResult:
    """Fine-tune a module that maps a batch of inputs to embeddings, on transformers' trainer.

    ``fine_tune`` comes here for every module that is no ``SentenceTransformer``. A checkpoint is written after every
    epoch. An interrupted run goes on from the last one with ``resume=True`` and ends as it would have without the
    interruption; where the data set draws random numbers as it is read, from checkpoints between epochs only.

    Args:
        module: trained in place. It is called with a batch of inputs and returns embeddings (B, D).
        train: ``TensorData``, or any data set of pairs (input, label) that has a length.
        loss: a label loss by name ("circle", "pml:SupConLoss"), or made already; any module that is called as
            ``loss(embeddings, labels)``. A loss by name learns its ``num_classes`` and ``embedding_size`` from the
            labels and the module.
        output_dir: folder of the run, see ``FineTuneResult``. The module is ``model/model.safetensors``, for
            ``safetensors.torch.load_model``.
        loss_options: options of a loss given by name.
        evaluator: called with the module at every epoch, for example ``ClassEvaluator(TensorData(inputs, labels))``,
            or several; the primary metric of the first decides which model is kept.
        epochs: passes over the data.
        batch_size: samples per step.
        learning_rate: peak rate of the module. 2e-5 suits large transformers; small networks trained from scratch want
            about 1e-3.
        loss_learning_rate: peak rate of the loss's own parameters; that of the module when None.
        warmup_share: share of the steps during which the rate rises linearly; it then falls linearly to 0.
        batch_sampler: "batch_sampler" (random), "group_by_label", or a factory of samplers as sentence-transformers
            defines it, which is given the labels as the only column of a ``datasets.Dataset``.
        miner: composes the batches of every epoch of classes that the module confuses, in place of `batch_sampler`.
        seed: of data order, dropout and new parameters of a loss. Global generators are left as they were.
        resume: go on from the last checkpoint in ``output_dir``, if there is one.
        show_progress: draw a progress bar on standard error.
        options: further options; those for texts (GradCache, Matryoshka, LoRA) are refused.
        trainer_args: further arguments for ``transformers.TrainingArguments``; they win over all others.
        callbacks: further callbacks for the trainer.

    Returns:
        The module, trained, with its metrics; the best one when an evaluator was given.

    Raises:
        InputError: for data, labels or a module that cannot be used, numbers out of range, an output folder that is in
            use, or a loss that does not learn from labels.
        UnknownNameError: for an unknown loss or sampler, with near names suggested.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from nearfar.retrieval import TensorData
        >>> from nearfar.retrieval.training.modules import fine_tune_module
        >>> data = TensorData(torch.eye(8), [0, 0, 1, 1, 2, 2, 3, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = fine_tune_module(torch.nn.Linear(8, 4), data, loss="circle", output_dir=folder,
        ...                               batch_size=8, learning_rate=1e-2, show_progress=False)
        >>> round(result.history[-1]["epoch"])
        1
    """
    numbers = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    check_positive(**numbers, loss_learning_rate=loss_learning_rate)
    check_data(train)
    options = _checked_options(options or TrainingOptions())
    check_miner(miner, batch_sampler)
    make_sampler = _sampler_factory(batch_sampler if miner is None else miner)
    settings = {
        **numbers,
        "loss_learning_rate": loss_learning_rate,
        "warmup_share": warmup_share,
        "seed": seed,
        "batch_sampler": batch_sampler if isinstance(batch_sampler, str) else type(batch_sampler).__name__,
        "miner": None if miner is None else miner.settings(),
    }
    evaluators = evaluator_list(evaluator)
    best = (evaluators[0].primary_metric, evaluators[0].greater_is_better) if evaluators else None
    folder = RunFolder(output_dir, last_file=MARKER)
    with preserved_random_state(), frozen(module, options.freeze):
        torch.manual_seed(seed)
        model = ModuleWithLoss(module, _made_loss(loss, dict(loss_options or {}), module, train, miner))
        extra = dict(trainer_args or {})
        arguments = training_arguments(folder.checkpoints, settings, options, "batch_sampler", best, extra)
        facts = {
            "module": type(module).__name__,
            "loss": describe_loss(model.loss),
            "data": describe_tensors(train),
            "processes": process_count(),
            "versions": versions(),
        }
        recipe = {
            "loss": plain(loss),
            "loss_options": plain(dict(loss_options or {})),
            **settings,
            **options.model_dump(mode="json"),
            "trainer_args": plain(extra),
        }
        checkpoint = folder.begin(recipe, resume, facts)
        trainer = ModuleTrainer(
            model,
            arguments,
            train,
            make_sampler=make_sampler,
            miner=miner,
            evaluators=evaluators,
            loss_learning_rate=loss_learning_rate,
            callbacks=[*callbacks, *callbacks_for(options, best)],
        )
        trainer.remove_callback(PrinterCallback)
        history = trainer.run(checkpoint, show_progress)
        metrics = trainer.metrics()
        folder.finish(_Weights(module), {"metrics": metrics, "history": history}, model.loss.state_dict())
    return FineTuneResult(module, metrics, history, folder.path)


class _Weights:
    """What a run folder keeps of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        save_model(self.module, str(Path(folder, "model.safetensors")))


def _checked_options(options: TrainingOptions) -> TrainingOptions:
    for name in _FOR_TEXTS:
        if (value := getattr(options, name)) is not None:
            raise InputError(f"{name}={value!r} is for a SentenceTransformer; leave it out for a torch.nn.Module")
    return options


def _made_loss(
    loss: Any,
    options: dict[str, Any],
    module: nn.Module,
    train: Dataset[Any],
    miner: GlobalProxyMiner | None,
) -> nn.Module:
    size = embed(module, Subset(train, range(min(_PROBE, len(train))))).shape[1]  # type: ignore[arg-type]
    made = loss if isinstance(loss, nn.Module) else _named_loss(loss, options, size, train)
    if made is loss and options:
        raise InputError("loss_options go with a loss given by name; this loss is made already")
    name = type(made).__name__
    if capabilities_of(made).inputs != "labels":
        raise InputError(f"{name} compares queries with documents; samples with labels need a label loss")
    if getattr(made, "reduction", "mean") != "mean":
        raise InputError(f"training needs a scalar: make {name} with reduction='mean'")
    return made if miner is None else miner.wrap(made, embedding_size=size)


def _named_loss(name: Any, options: dict[str, Any], size: int, train: Dataset[Any]) -> nn.Module:
    if not isinstance(name, str):
        raise InputError(f"loss is a {type(name).__name__}; give the name of a label loss, or a module")
    if name.startswith("st:"):
        raise InputError(f"loss {name!r} owns a SentenceTransformer; a torch.nn.Module learns from a label loss")
    if wants_sizes(name):
        classes = {} if "num_classes" in options else {"num_classes": int(labels_of(train).max()) + 1}
        options = {"embedding_size": size, **classes, **options}
    found = get_loss(name, **options)
    assert isinstance(found, nn.Module)
    return found


def _sampler_factory(choice: str | SamplerFactory) -> SamplerFactory | None:
    """The factory of batch samplers; None for random batches."""
    if choice == "batch_sampler":
        return None
    if choice == "group_by_label":
        from sentence_transformers.base.sampler import GroupByLabelBatchSampler

        return GroupByLabelBatchSampler  # type: ignore[no-any-return]
    if isinstance(choice, str) or not callable(choice):
        raise InputError(
            f"batch_sampler={choice!r} is no choice for tensors; give 'batch_sampler', 'group_by_label', or a factory "
            "of batch samplers"
        )
    return choice

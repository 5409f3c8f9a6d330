"""From what the user calls a loss to a module that the trainer can call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from nearfar.errors import InputError
from nearfar.losses import ForSentenceTransformer, Loss, get_loss
from nearfar.losses.registry import wants_sizes
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.options import TrainingOptions

LossChoice = str | nn.Module | Callable[[Any], nn.Module]


def reads_classes(loss: Any) -> bool:
    """Whether integer labels are classes to the loss; sentence-transformers' losses would take them for scores."""
    return not isinstance(loss, str) or not loss.startswith("st:")


def bind_losses(
    model: SentenceTransformer,
    loss: LossChoice | Mapping[str, LossChoice],
    loss_options: Mapping[str, Any],
    dataset: Any,
    options: TrainingOptions,
    seed: int,
    miner: GlobalProxyMiner | None = None,
) -> nn.Module | dict[str, nn.Module]:
    """The trainer's loss, or losses by data set; their own parameters are drawn from the seed.

    Raises:
        InputError: when losses and data sets do not go together.
    """
    torch.manual_seed(seed)
    if not isinstance(loss, Mapping):
        # Several data sets with one loss give it one numbering of classes: only the first can tell how many.
        table = dataset if hasattr(dataset, "column_names") and not isinstance(dataset, dict) else None
        return _bind(model, loss, dict(loss_options), table, options, miner)
    if miner is not None:
        raise InputError("a miner plans the batches of one data set with one loss; train without it, or join the data")
    if not isinstance(dataset, dict) or set(loss) != set(dataset):
        names = ", ".join(dataset) if isinstance(dataset, dict) else "one without a name"
        raise InputError(f"loss is given for the data sets {', '.join(loss)}; the training data is {names}")
    unknown = sorted(set(loss_options) - set(loss))
    if unknown:
        raise InputError(f"loss_options has {', '.join(unknown)}; with several losses give options by data set")
    return {
        name: _bind(model, each, dict(loss_options.get(name, {})), dataset[name], options)
        for name, each in loss.items()
    }


def check_miner(miner: GlobalProxyMiner | None, batch_sampler: Any) -> None:
    """A miner makes the batches itself."""
    if miner is not None and batch_sampler != "batch_sampler":
        raise InputError(f"batch_sampler={batch_sampler!r} and miner both make the batches; leave one out")


def describe_loss(loss: nn.Module) -> dict[str, Any]:
    """A loss as a recipe states it: its class and settings."""
    inner = loss.loss if isinstance(loss, ForSentenceTransformer) else loss
    settings = inner.settings() if isinstance(inner, Loss) else {}
    return {"class": f"{type(inner).__module__.split('.')[0]}.{type(inner).__name__}", **settings}


def describe_losses(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, Any]:
    """One loss, or losses by data set."""
    if isinstance(loss, Mapping):
        return {name: describe_loss(each) for name, each in loss.items()}
    return describe_loss(loss)


def _bind(
    model: SentenceTransformer,
    loss: LossChoice,
    settings: dict[str, Any],
    dataset: Any,
    options: TrainingOptions,
    miner: GlobalProxyMiner | None = None,
) -> nn.Module:
    made: Any = loss
    if isinstance(loss, str):
        made = get_loss(loss, **_with_models(_with_sizes(loss, settings, model, dataset)))
    elif settings:
        raise InputError("loss_options go with a loss given by name; this loss is made already")
    if not isinstance(made, nn.Module):
        made = made(model)
    elif not hasattr(made, "model"):
        wrap = ForSentenceTransformer if miner is None else _mined(miner)
        made = wrap(model, made, options.mini_batch_size)
    if miner is not None and getattr(made, "miner", None) is not miner:
        raise InputError(
            f"{type(made).__name__} owns its model and shows a miner nothing; use a loss of nearfar or PML"
        )
    # A loss that owns a model, ForSentenceTransformer included, is ready for the trainer.
    if options.mini_batch_size is not None and getattr(made, "mini_batch_size", None) != options.mini_batch_size:
        raise InputError(
            f"mini_batch_size={options.mini_batch_size} is for losses of nearfar and pytorch-metric-learning; "
            f"{type(made).__name__} has its own, if any: give it in loss_options"
        )
    return made if options.matryoshka_dimensions is None else _matryoshka(model, made, options.matryoshka_dimensions)


def _mined(miner: GlobalProxyMiner) -> Callable[..., nn.Module]:
    return lambda model, loss, mini_batch_size: miner.wrap(loss, model, mini_batch_size=mini_batch_size)


def _matryoshka(model: SentenceTransformer, loss: nn.Module, dimensions: tuple[int, ...]) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    size = model.get_embedding_dimension() or 0
    if not all(0 < each <= size for each in dimensions):
        raise InputError(
            f"matryoshka_dimensions={list(dimensions)}: each must be between 1 and the embeddings' own {size}"
        )
    if hasattr(getattr(loss, "loss", None), "num_classes"):
        raise InputError(
            f"matryoshka_dimensions: {type(loss.loss).__name__} has class weights of one length, so it cannot train "
            "shorter embeddings; choose a loss without them"
        )
    wrapped: nn.Module = MatryoshkaLoss(model, loss, sorted({*dimensions, size}, reverse=True))
    return wrapped


def _with_sizes(loss: str, settings: dict[str, Any], model: SentenceTransformer, dataset: Any) -> dict[str, Any]:
    """Fill in the number of classes and the embedding size of a loss that wants them, from the data and the model."""
    if loss.startswith("st:") or not wants_sizes(loss):
        return settings
    if "num_classes" not in settings:
        if dataset is None:
            raise InputError(f"loss {loss!r} learns from classes; with several data sets give each a loss of its own")
        if "label" not in dataset.column_names:
            raise InputError(f"loss {loss!r} learns from classes; the training data has no label column")
        settings["num_classes"] = max(dataset["label"]) + 1
    return {"embedding_size": model.get_embedding_dimension(), **settings}


def _with_models(settings: dict[str, Any]) -> dict[str, Any]:
    """Load a guide that is given by name or folder."""
    if not isinstance(settings.get("guide"), str):
        return settings
    from nearfar.retrieval.encoders import load_encoder

    return {**settings, "guide": load_encoder(settings["guide"])}

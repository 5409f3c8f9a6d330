"""nearfar's settings as sentence-transformers' training arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from nearfar.errors import InputError, MissingDependencyError, UnknownNameError
from nearfar.retrieval.training.options import TrainingOptions
from nearfar.retrieval.training.precision import uses_bf16


def training_arguments(
    output_dir: Path,
    settings: Mapping[str, Any],
    options: TrainingOptions,
    batch_sampler: Any,
    best: tuple[str, bool] | None,
    extra: Mapping[str, Any],
) -> SentenceTransformerTrainingArguments:
    """The arguments of a run. Making them joins the processes that ``torchrun`` started.

    Args:
        output_dir: where checkpoints go.
        settings: epochs, batch_size, learning_rate, warmup_share, seed.
        options: the rarer ones.
        batch_sampler: a name or a factory.
        best: name of the evaluator's metric that decides which model is kept, and whether more is better.
        extra: arguments of sentence-transformers by their names; they win.

    Raises:
        InputError: for an argument that does not exist.
        MissingDependencyError: when a reporter is not installed.
    """
    when = "epoch" if settings["epochs"] >= 1 else "no"
    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "warmup_steps": settings["warmup_share"],
        "batch_sampler": batch_sampler,
        "seed": settings["seed"],
        "save_strategy": when,
        "save_total_limit": options.keep_checkpoints,
        "eval_strategy": when if best is not None else "no",
        "logging_strategy": "epoch",
        "gradient_accumulation_steps": options.gradient_accumulation,
        "max_grad_norm": options.max_grad_norm,
        "weight_decay": options.weight_decay,
        "bf16": uses_bf16(options.precision),
        "report_to": _reporters(options.report_to),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        # Unless told so, processes on a machine without an accelerator do not find each other.
        "use_cpu": not torch.accelerator.is_available(),
    }
    if best is not None and when != "no":
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": f"eval_{best[0]}"}
        arguments |= {"greater_is_better": best[1]}
    known = SentenceTransformerTrainingArguments.__dataclass_fields__
    for name in extra:
        if name not in known:
            raise UnknownNameError("training argument", name, known)
    try:
        return SentenceTransformerTrainingArguments(**{**arguments, **extra})
    except ValueError as error:
        raise InputError(f"training arguments do not fit together: {error}") from error


def _reporters(names: tuple[str, ...]) -> list[str]:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UnknownNameError("reporter", name, INTEGRATION_TO_CALLBACK)
        if name not in get_available_reporting_integrations():
            raise MissingDependencyError(f"report_to={name!r} needs the package {name}; install it: pip install {name}")
    return list(names)

"""What a training run may be told beyond loss, data and the usual numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nearfar.errors import InputError, UnknownNameError


class CheckedModel(BaseModel):
    """Settings whose mistakes are named in one line, with near names for a key that does not exist."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str] = "option"

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise complaint(error, type(self)) from None


class LoraOptions(CheckedModel):
    """Low-rank adapters, https://arxiv.org/abs/2106.09685 (Hu et al., 2021), by the package ``peft``.

    The weights of the model stay as they are; small matrices beside them are trained.

    Args:
        rank: of the matrices; 8 (peft's default).
        alpha: the adapters' output is multiplied by ``alpha / rank``; 16.
        dropout: on the adapters' input; 0.
        target_modules: names of the layers that get one; those peft knows for the architecture when None.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None


class TrainingOptions(CheckedModel):
    """The rarer options of ``fine_tune`` and of recipes.

    Args:
        mini_batch_size: embed this many rows at once (GradCache), for batches that do not fit the memory; None (all).
            Not for static models. Losses of sentence-transformers have their own (``loss_options``).
        gradient_accumulation: batches per step of the optimiser; 1. Unlike ``mini_batch_size`` it does not make the
            loss see more negatives.
        precision: "fp32"; "bf16", the forward pass in bfloat16 (autocast) where the processor computes in it; "auto",
            bf16 where it does, else fp32.
        weight_decay: of AdamW; 0. Single numbers of a loss (scale, bias) get none.
        max_grad_norm: gradients of model and loss together are scaled down to this norm; 1. 0 for no limit.
        matryoshka_dimensions: train these prefixes of the embeddings as well as the whole
            (https://arxiv.org/abs/2205.13147); None.
        freeze: regular expressions; parameters of the model in whose name one is found do not learn.
        lora: train low-rank adapters instead of the weights; needs the package ``peft``; None.
        patience: end the training when the evaluator's metric has not risen for so many evaluations; None.
        save_every: write a checkpoint every so many steps, besides the one after each epoch; None.
        keep_checkpoints: how many to keep besides the best; 2.
        report_to: where the log goes as well: "tensorboard", "wandb", or any name that transformers knows.

    Raises:
        InputError: for a value out of range.
        UnknownNameError: for an option that does not exist, with near names suggested.

    Example:
        >>> from nearfar.retrieval import TrainingOptions
        >>> TrainingOptions(mini_batch_size=32).gradient_accumulation
        1
    """

    mini_batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    matryoshka_dimensions: tuple[int, ...] | None = Field(default=None, min_length=1)
    freeze: tuple[str, ...] = ()
    lora: LoraOptions | None = None
    patience: int | None = Field(default=None, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    report_to: tuple[str, ...] = ()


def check_positive(**numbers: float | None) -> None:
    """Numbers by name that must be above 0; None is none of them."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}={value!r} must be above 0")


def complaint(error: ValidationError, model: type[CheckedModel]) -> InputError:
    """The first thing that pydantic found, as one of nearfar's errors."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UnknownNameError(model.kind, name, model.model_fields)
    if first["type"] == "missing":
        return InputError(f"{name} is missing; give it as a {model.kind}, or on the command line as --{name}")
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner
    problem = first["msg"][:1].lower() + first["msg"][1:]
    return InputError(f"{name}={first['input']!r}: {problem}")

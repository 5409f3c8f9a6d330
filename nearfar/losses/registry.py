"""One registry over three libraries: nearfar's losses, pytorch-metric-learning's and sentence-transformers'."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nearfar.errors import InputError, UnknownNameError
from nearfar.losses.contract import Loss

_REQUIRED = inspect.Parameter.empty
# Short names, as used on the command line and in recipes.
_NAMES = {
    "adaface": "AdaFaceLoss",
    "arcface": "ArcFaceLoss",
    "bixse": "BiXSELoss",
    "circle": "CircleLoss",
    "circle-head": "CircleHeadLoss",
    "contrastive": "ContrastiveLoss",
    "cosface": "CosFaceLoss",
    "decoupled-softmax": "DecoupledSoftmaxLoss",
    "elasticface": "ElasticFaceLoss",
    "icnn": "ICNNLoss",
    "info-nce": "InfoNCELoss",
    "linear-softmax": "LinearSoftmaxLoss",
    "mann-whitney": "MannWhitneyLoss",
    "multi-similarity": "MultiSimilarityLoss",
    "nbc-softmax": "NBCSoftmaxLoss",
    "normalized-softmax": "NormalizedSoftmaxLoss",
    "ntxent": "NTXentLoss",
    "proto-triplet": "ProtoTripletLoss",
    "proxy-anchor": "ProxyAnchorLoss",
    "siglip": "SigLIPLoss",
    "soft-top-k": "SoftTopKLoss",
    "sub-center-arcface": "SubCenterArcFaceLoss",
    "supcon": "SupConLoss",
    "threshold-consistent-margin": "ThresholdConsistentMarginLoss",
    "triplet-margin": "TripletMarginLoss",
}
# Options of a loss's call, which recipes and the command line give as options of the loss.
_CALL_OPTIONS = {"mixing": "Metrix", "synthesis": "HardNegativeMixing"}
_LIBRARIES = {
    "pml": "pytorch_metric_learning.losses",
    "st": "sentence_transformers.sentence_transformer.losses",
}


@dataclass(frozen=True)
class LossEntry:
    """One of nearfar's losses.

    Attributes:
        name: the short name that ``get_loss`` takes.
        loss: the class.
        options: the constructor's options with their defaults; "required" where there is none.
    """

    name: str
    loss: type[Loss]
    options: dict[str, object]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(self.loss) or "").split("\n", 1)[0]


def list_losses() -> list[LossEntry]:
    """All of nearfar's losses, by name.

    Example:
        >>> from nearfar.losses import list_losses
        >>> [entry.options["gamma"] for entry in list_losses() if entry.name == "circle"]
        [80]
    """
    entries = []
    for name, class_name in sorted(_NAMES.items()):
        loss: type[Loss] = getattr(importlib.import_module("nearfar.losses"), class_name)
        parameters = list(inspect.signature(loss.__init__).parameters.values())[1:]
        options = {p.name: "required" if p.default is _REQUIRED else p.default for p in parameters}
        entries.append(LossEntry(name, loss, options))
    return entries


def get_loss(name: str, **options: Any) -> nn.Module | Callable[..., nn.Module]:
    """A loss by name.

    Args:
        name: a short name or class name of nearfar ("circle", "CircleLoss"), or "pml:" or "st:" and a class name of
            pytorch-metric-learning ("pml:SupConLoss") or sentence-transformers ("st:MultipleNegativesRankingLoss").
        options: passed to the constructor. A label loss of nearfar also takes ``mixing`` and ``synthesis``: a
            ``Metrix`` and a ``HardNegativeMixing``, a table of their options, or True for their defaults.

    Returns:
        The loss, inside ``WithOptions`` where it has mixing or synthesis. For "st:" a function that takes the model
        and returns the loss, since those losses own their model.

    Raises:
        UnknownNameError: with near names suggested.
        InputError: for an option the loss does not have.

    Example:
        >>> from nearfar.losses import get_loss
        >>> get_loss("circle", gamma=64)
        CircleLoss(m=0.4, gamma=64.0, grouping='anchor', reduction='mean')
        >>> get_loss("circle", mixing={"alpha": 1.0}).mixing.alpha
        1.0
    """
    prefix, _, rest = name.partition(":")
    if rest:
        return _foreign(prefix, rest, options)
    wanted = _plain(name)
    for short, class_name in _NAMES.items():
        if wanted in (_plain(short), _plain(class_name)):
            loss: type[Loss] = getattr(importlib.import_module("nearfar.losses"), class_name)
            of_call = {option: options.pop(option) for option in _CALL_OPTIONS if option in options}
            return _called_with(_construct(loss, short, options), of_call)
    raise UnknownNameError("loss", name, _NAMES)


def wants_sizes(name: str) -> bool:
    """Whether a loss must be told ``num_classes`` and ``embedding_size``."""
    if name.startswith("pml:"):
        module = importlib.import_module(_LIBRARIES["pml"])
        loss = getattr(module, name.removeprefix("pml:"), None)
        return loss is not None and "num_classes" in inspect.signature(loss.__init__).parameters
    return any(
        _plain(name) in (_plain(entry.name), _plain(entry.loss.__name__)) and "num_classes" in entry.options
        for entry in list_losses()
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _foreign(prefix: str, class_name: str, options: dict[str, Any]) -> nn.Module | Callable[..., nn.Module]:
    if prefix not in _LIBRARIES:
        raise UnknownNameError("library of losses", prefix, _LIBRARIES)
    module = importlib.import_module(_LIBRARIES[prefix])
    known = {
        name
        for name, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, nn.Module) and name.endswith("Loss") and not name.startswith("Base")
    }
    if class_name not in known:
        raise UnknownNameError(f"loss of {_LIBRARIES[prefix].split('.')[0]}", class_name, known)
    loss = getattr(module, class_name)
    if prefix == "st":
        # The first parameter is the model, which the caller supplies.
        _check_options(loss, class_name, options)
        return functools.partial(loss, **options)
    return _construct(loss, class_name, options)


def _construct(loss: type[nn.Module], name: str, options: dict[str, Any]) -> nn.Module:
    _check_options(loss, name, options)
    try:
        return loss(**options)
    except TypeError as error:
        raise InputError(f"loss {name!r} cannot be made from options {options}: {error}") from error


def _called_with(loss: nn.Module, given: Mapping[str, object]) -> nn.Module:
    losses, made = importlib.import_module("nearfar.losses"), {}
    for option, value in given.items():
        kind = getattr(losses, _CALL_OPTIONS[option])
        if isinstance(value, kind):
            made[option] = value
        elif isinstance(value, Mapping) or value is True:
            made[option] = _construct(kind, option, {} if value is True else dict(value))
        elif value is not None and value is not False:
            raise InputError(f"{option}={value!r} must be true, or a table of options of {_CALL_OPTIONS[option]}")
    if not made:
        return loss
    wrapped: nn.Module = losses.WithOptions(loss, **made)
    return wrapped


def _check_options(loss: type[nn.Module], name: str, options: dict[str, Any]) -> None:
    parameters = inspect.signature(loss.__init__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise UnknownNameError(f"option of loss {name!r}", option, set(parameters) - {"self"})

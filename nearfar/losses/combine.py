"""Sums of losses, for example a base loss and a regulariser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.contract import Capabilities, Loss

# What sentence-transformers' trainer logs itself, or keeps beside the parts.
_LOGGED = ("loss", "learning_rate", "grad_norm", "epoch", "steps")

Losses = Mapping[nn.Module, float] | Mapping[str, tuple[nn.Module, float]] | Sequence[tuple[nn.Module, float]]


class LoggedParts(dict[str, Tensor]):
    """The weighted parts of a loss by name; sentence-transformers' trainer logs each and trains on their sum.

    Wrappers such as ``MatryoshkaLoss`` multiply and add what a loss returns; here that acts part by part.

    Example:
        >>> import torch
        >>> from nearfar.losses.combine import LoggedParts
        >>> parts = LoggedParts(base=torch.tensor(1.0), margin=torch.tensor(0.25))
        >>> (0.0 + 2 * parts + parts).total()
        tensor(3.7500)
    """

    def __mul__(self, factor: float) -> LoggedParts:
        return LoggedParts({name: factor * value for name, value in self.items()})

    __rmul__ = __mul__

    def __add__(self, other: LoggedParts | float) -> LoggedParts:
        if isinstance(other, LoggedParts):
            return LoggedParts({name: value + other[name] for name, value in self.items()})
        # Sums begin with 0; any other number belongs to no part.
        return self if other == 0 else NotImplemented

    __radd__ = __add__

    def total(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.values())).sum()


class WeightedSum(Loss):
    r"""A weighted sum of losses, such as a base loss and a regulariser.

    .. math::
        L = \sum_k w_k L_k

    Each part is called with the arguments of the sum. Inside ``ForSentenceTransformer`` each part reads the columns
    as it would alone, so that a label loss may stand next to a query-document loss, and the trainer logs each part
    under its name.

    Args:
        losses: ``{loss: weight}``, ``[(loss, weight), ...]`` or ``{name: (loss, weight)}``. Without a name a part goes
            by its class name, numbered from the second of a class on. Losses of pytorch-metric-learning, and other
            modules called as ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``, may be parts. If one
            part needs raw embeddings (``capabilities.needs_norms``), all get them.

    Attributes:
        parts: the losses by name.
        weights: their weights by name; may be changed between steps, and is no part of ``state_dict()``.
        last_parts: each part of the last call, weighted and detached, by name.
        capabilities: what all parts can honour. ``inputs`` is "documents" as soon as one part wants documents.

    Raises:
        InputError: for no losses, a weight that is negative or not finite, a name that cannot be logged, or a part with
            ``reduction="none"`` or with a model of its own.

    Example:
        >>> import torch
        >>> from nearfar.losses import ThresholdConsistentMarginLoss, TripletMarginLoss, WeightedSum
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> loss = WeightedSum({TripletMarginLoss(): 1, ThresholdConsistentMarginLoss(): 0.5})
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.612
        >>> {name: round(value.item(), 4) for name, value in loss.last_parts.items()}
        {'TripletMarginLoss': 0.312, 'ThresholdConsistentMarginLoss': 0.3}
    """

    def __init__(self, losses: Losses) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self.last_parts: dict[str, Tensor] = {}
        for name, loss, weight in _entries(losses):
            self._add(name, loss, weight)

    def _add(self, name: str | None, loss: nn.Module, weight: float) -> None:
        if name is None:
            alike = sum(type(part) is type(loss) for part in self.parts.values())
            name = type(loss).__name__ + (f"_{alike + 1}" if alike else "")
        if not name or "." in name or name in _LOGGED or name in self.parts or hasattr(nn.ModuleDict, name):
            raise InputError(f"{name!r} cannot name a part of the sum: it is empty, taken, reserved or holds a dot")
        if not 0 <= weight < math.inf:
            raise InputError(f"weight {weight!r} of {name} must be a finite number, 0 or above")
        if getattr(loss, "reduction", "mean") != "mean":
            raise InputError(f"{name} has no scalar to add: make it with reduction='mean'")
        if hasattr(loss, "model"):
            raise InputError(
                f"{name} owns a model; sum the losses first: ForSentenceTransformer(model, WeightedSum(...))"
            )
        self.parts[name] = loss
        self.weights[name] = float(weight)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What all parts can honour."""
        found = [capabilities_of(part) for part in self.parts.values()]
        flags = [field.name for field in fields(Capabilities) if field.name != "inputs"]
        shared = {flag: all(getattr(each, flag) for each in found) for flag in flags}
        shared |= {"unreduced": False, "needs_norms": any(each.needs_norms for each in found)}
        return Capabilities(inputs="documents" if "documents" in _inputs(found) else "labels", **shared)

    @property
    def paper(self) -> str:  # type: ignore[override]
        """The papers of the parts."""
        return _joined(self.parts, "paper", ", ")

    @property
    def citation(self) -> str:  # type: ignore[override]
        """BibTeX of all parts."""
        return _joined(self.parts, "citation", "\n\n")

    def settings(self) -> dict[str, object]:
        """Class, weight and options of each part, by name."""
        parts = {
            name: {
                "loss": type(part).__name__,
                "weight": self.weights[name],
                **(part.settings() if isinstance(part, Loss) else {}),
            }
            for name, part in self.parts.items()
        }
        return {"parts": parts}

    def extra_repr(self) -> str:
        """The weights; the parts print themselves."""
        return f"weights={self.weights}"

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The sum; every part is called with these arguments.

        Raises:
            InputError: when label losses and query-document losses are mixed, or a part cannot honour an argument.
        """
        if len(_inputs([capabilities_of(part) for part in self.parts.values()])) > 1:
            raise InputError(
                "this sum mixes label losses with query-document losses, which take different arguments; "
                "train it through ForSentenceTransformer"
            )
        return self.weigh(lambda part: part(*inputs, **options)).total()

    def weigh(self, evaluate: Callable[[nn.Module], Tensor]) -> LoggedParts:
        """The weighted parts, where ``evaluate(part)`` gives the value of a part."""
        found = LoggedParts({name: self.weights[name] * evaluate(part) for name, part in self.parts.items()})
        self.last_parts = {name: value.detach() for name, value in found.items()}
        return found


def capabilities_of(loss: nn.Module) -> Capabilities:
    """What a loss declares; a loss of another library is called like a label loss."""
    if isinstance(loss, Loss):
        return loss.capabilities
    return Capabilities(inputs="labels", streams=False, multi_label=False, gathers=False)


def _inputs(capabilities: Sequence[Capabilities]) -> set[str]:
    return {each.inputs for each in capabilities}


def _joined(parts: nn.ModuleDict, attribute: str, separator: str) -> str:
    texts = [str(getattr(part, attribute, "")) for part in parts.values()]
    return separator.join(dict.fromkeys(text for text in texts if text))


def _entries(losses: Losses) -> list[tuple[str | None, nn.Module, float]]:
    items = list(losses.items() if isinstance(losses, Mapping) else losses)
    found: list[tuple[str | None, Any, Any]] = []
    for item in items:
        match item:
            case (str() as name, (nn.Module() as loss, float() | int() as weight)):
                found.append((name, loss, weight))
            case (nn.Module() as loss, float() | int() as weight):
                found.append((None, loss, weight))
            case _:
                raise InputError(
                    f"{item!r} is no part of a sum; give {{loss: weight}}, [(loss, weight), ...] or "
                    "{name: (loss, weight)}"
                )
    if not found:
        raise InputError("losses is empty: a sum needs at least one loss")
    return found

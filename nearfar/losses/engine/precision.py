"""Losses run in float32 or better, whatever autocast says outside."""

from __future__ import annotations

import torch

from nearfar.errors import InputError


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off for ``device``: similarities and log-sum-exps need float32."""
    return torch.autocast(device.type, enabled=False)


def refuse_second_derivative() -> None:
    """Called in a backward that forms gradients outside autograd's sight: they cannot be differentiated again.

    Raises:
        InputError: inside ``create_graph=True``. Without it the second derivative would silently lack its main part.
    """
    if torch.is_grad_enabled():
        raise InputError("the streamed path has first derivatives only: make the loss with path='dense'")

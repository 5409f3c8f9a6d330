"""Losses run in float32 or better, whatever autocast says outside."""

from __future__ import annotations

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off for ``device``: similarities and log-sum-exps need float32."""
    return torch.autocast(device.type, enabled=False)

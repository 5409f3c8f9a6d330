"""In which numbers a model trains, and what the processor is good for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nearfar.errors import InputError


def uses_bf16(precision: str) -> bool:
    """Whether to train in bfloat16 autocast.

    Args:
        precision: "fp32", "bf16" or "auto".

    Raises:
        InputError: for "bf16" where the processor would only emulate it, which is slower than float32.
    """
    if precision == "fp32":
        return False
    if precision == "bf16" and not computes_bf16():
        raise InputError(
            "precision='bf16': this processor does not compute in bfloat16 (no avx512_bf16 or amx on a CPU), where it "
            "is slower than float32; use precision='fp32' or 'auto'"
        )
    return computes_bf16()


def computes_bf16() -> bool:
    """Whether the device that trains has bfloat16 instructions."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.accelerator.is_available():
        return False
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))

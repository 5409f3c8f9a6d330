"""Mining: which samples to put in a batch, and which pairs of a batch to learn from; names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

# Name -> module, so that none pays for the imports of the others.
_MODULES: dict[str, str] = {}

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

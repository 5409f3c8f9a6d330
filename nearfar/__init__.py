"""nearfar: metric learning and retrieval with index integration.

Subpackages load on first use, so ``import nearfar`` costs almost nothing:

- ``nearfar.losses``: losses that stream, so that large batches fit in memory
- ``nearfar.retrieval``: the index, the retriever and fine-tuning
- ``nearfar.eval``: metrics, thresholds and reports
- ``nearfar.data``: readers, writers and the demo data
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = ("data", "errors", "eval", "losses", "retrieval")

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The packages a run's numbers depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("nearfar", "torch", "sentence-transformers", "transformers", "accelerate", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that training rests on, by name."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"

"""What every calibration shares: checked levels, and when and with what it was made."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from nearfar.errors import InputError


def check_levels(alpha: float, delta: float, **others: float | None) -> None:
    """Raise InputError unless alpha, delta and the others that are given lie between 0 and 1."""
    for name, value in {"alpha": alpha, "delta": delta, **others}.items():
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name} is {value}; it must be above 0 and below 1")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of nearfar, numpy and Python."""
    found = {"python": platform.python_version()}
    for name in ("nearfar", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            found[name] = "unknown"
    return found

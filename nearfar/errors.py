"""Every error that nearfar raises on purpose.

A message names the thing that is wrong, its value, and the fix. The command line prints the message alone and
ends with exit code 2, so a user never reads a traceback for a mistake in the input.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class NearfarError(Exception):
    """Base class of all errors raised by nearfar."""


class InputError(NearfarError, ValueError):
    """An argument, array or option is not usable as given."""


class DataFileError(InputError):
    """A file of the user's data is missing, unreadable or malformed.

    Args:
        path: the file or folder.
        problem: what is wrong and how to mend it.
        line: the 1-based line number, when one line is at fault.
    """

    def __init__(self, path: str | Path, problem: str, line: int | None = None) -> None:
        self.path = Path(path)
        self.line = line
        place = str(path) if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}")


class UnknownNameError(InputError):
    """A name (of a loss, a metric, an option) is not known; near names are suggested.

    Args:
        kind: what the name stands for, for example "loss".
        name: the name as given.
        known: all names that would have been accepted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
        near_names = [n for n in names if n.lower() in near]
        hint = f"did you mean {', '.join(near_names)}?" if near_names else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class DimensionMismatchError(InputError):
    """Vectors do not have the dimension that the index or model expects."""


class DuplicateIdError(InputError):
    """An id occurs twice where ids must be unique."""


class IndexCorruptError(NearfarError):
    """A file of an index is missing, truncated or altered."""


class ModelMismatchError(NearfarError):
    """An index is used with a model other than the one that filled it."""


class MissingDependencyError(NearfarError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

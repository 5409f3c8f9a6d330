"""The command line. Errors of the user's end in one line and exit code 2; Ctrl-C ends with 130."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from nearfar.errors import NearfarError

_BAD_INPUT = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: words after the program's name; those of the process when None.
    """
    warnings.formatwarning = _one_line_warning
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    import typer

    from nearfar.cli.app import app

    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="nearfar", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; what was finished is kept", file=sys.stderr)  # noqa: T201
        return _INTERRUPTED
    except NearfarError as error:
        return _complain(str(error))
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        sys.stderr.close()
        return 0
    except OSError as error:
        return _complain(f"{error.filename or 'input/output'}: {error.strerror or error}")
    except Exception as error:
        # Typer's usage errors: their common base is click's, which some versions of typer carry inside.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(f"{message()} See nearfar --help.")
    return result if isinstance(result, int) else 0


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"


def _complain(message: str) -> int:
    one_line = " ".join(message.split())
    print(f"error: {one_line}", file=sys.stderr)  # noqa: T201
    return _BAD_INPUT

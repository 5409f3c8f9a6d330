"""Writing a report so that a failure never leaves half of one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from nearfar.errors import InputError
from nearfar.eval.report.html import report_html
from nearfar.eval.report.markdown import report_markdown
from nearfar.eval.report.model import Report
from nearfar.eval.report.serialize import report_json


def write_report(report: Report, folder: str | Path) -> Path:
    """Writes `report.html`, `report.json` and `report.md`, replacing those of an earlier report.

    All three are rendered and stored under temporary names first; only then does each take its place, in one
    step.

    Args:
        report: what to write.
        folder: where; created when missing.

    Returns:
        The path of `report.html`, one self-contained page that loads nothing over the network.

    Raises:
        InputError: `folder` is a file.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from nearfar.eval import RankingResult
        >>> from nearfar.eval.report import ModelSection
        >>> values = {"R@1": np.array([1.0, 0.0])}
        >>> ranking = RankingResult(["q1", "q2"], values, {"R@1": 0.5}, [], [], 0.0, 20)
        >>> report = Report("A first look", "two queries", [ModelSection("encoder", ranking)], "R@1")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(report, folder).name
        'report.html'
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a report needs a folder")
    contents = {
        "report.json": report_json(report),
        "report.md": report_markdown(report),
        "report.html": report_html(report),
    }
    target.mkdir(parents=True, exist_ok=True)
    staged: dict[Path, Path] = {}
    try:
        for name, text in contents.items():
            staged[target / name] = _stage(target, name, text)
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    _sync_folder(target)
    return target / "report.html"


def _stage(folder: Path, name: str, text: str) -> Path:
    """Stores a text durably under a temporary name in the folder of its destination."""
    path = folder / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        # Text read from broken files may hold lone surrogates, which UTF-8 cannot.
        with path.open("x", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _sync_folder(folder: Path) -> None:
    """Makes the new names durable where the system can open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

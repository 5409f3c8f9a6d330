"""The report as plain JSON: every number behind the page, and no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel

from nearfar.eval.report.comparison import comparisons, verdict
from nearfar.eval.report.explorer import explorer
from nearfar.eval.report.model import Report

FORMAT = "nearfar-report"
FORMAT_VERSION = 1


def report_json(report: Report) -> str:
    """The report as strict JSON text; numbers that are not finite become null.

    The models' answers stand together under "explorer", each text once and whole.
    """
    answers = explorer(report, budget=None)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **plain(replace(report, models=[replace(model, answers=()) for model in report.models])),
        "explorer": answers and answers.content,
        "verdict": plain(verdict(report)),
        "comparisons": plain(comparisons(report)),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses, mappings and arrays as dicts, lists and scalars that JSON can hold.

    Example:
        >>> plain({"curve": np.array([0.5, np.nan]), 10: (1, True)})
        {'curve': [0.5, None], '10': [1, True]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    return str(value)

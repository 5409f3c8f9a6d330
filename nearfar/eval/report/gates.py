"""Gates for continuous integration: a metric below its floor, or fallen since an earlier report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import DataFileError, InputError, UnknownNameError
from nearfar.eval.metrics import parse_metric
from nearfar.eval.report.serialize import FORMAT

# Means of the same values, summed in another order, differ by about this much.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class EarlierReport:
    """What a gate needs of a report.json.

    Attributes:
        path: of the file.
        means: for each model's name the mean of each metric.
        queries: ids of the queries that all models were scored on.
    """

    path: Path
    means: dict[str, dict[str, float]]
    queries: frozenset[str]

    def means_for(self, model: str) -> dict[str, float]:
        """The means of the model of that name; of the last model, the one the report is about, if none has it."""
        return self.means.get(model) or list(self.means.values())[-1]


def parse_floor(text: str) -> tuple[str, float]:
    """Read a floor such as "nDCG@10=0.40".

    Raises:
        InputError: not a metric and a number parted by "=".
        UnknownNameError: an unknown metric.

    Example:
        >>> parse_floor("nDCG@10=0.40"), parse_floor("nDCG(gain=exp)@10=.5")
        (('nDCG@10', 0.4), ('nDCG(gain=exp)@10', 0.5))
    """
    name, _, number = text.rpartition("=")
    try:
        floor = float(number)
    except ValueError:
        floor = math.nan
    if not name.strip() or not math.isfinite(floor):
        raise InputError(f"--fail-under {text!r} is not of the form METRIC=NUMBER, such as nDCG@10=0.40")
    parse_metric(name.strip())
    return name.strip(), floor


def load_report(path: str | Path) -> EarlierReport:
    """Read the means of a report.json.

    Raises:
        DataFileError: missing, unreadable, or not a report of nearfar.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFileError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataFileError(path, f"is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataFileError(path, "is not a report; give the report.json that nearfar evaluate --report wrote")
    try:
        rankings = {str(model["name"]): model["ranking"] for model in content["models"]}
        means = {name: _finite(ranking["mean"]) for name, ranking in rankings.items()}
        queries = frozenset(map(str, next(iter(rankings.values()))["query_ids"]))
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise DataFileError(path, f"is a damaged report ({error!r}); write it anew") from error
    return EarlierReport(Path(path), means, queries)


def below_floor(means: Mapping[str, float], floors: Sequence[tuple[str, float]]) -> list[str]:
    """One line for each floor that is not reached.

    Example:
        >>> below_floor({"R@1": 0.38}, [("R@1", 0.4), ("R@1", 0.3)])
        ['R@1 is 0.3800, below 0.4']
    """
    return [
        f"{name} is {means[name]:.4f}, below {floor:g}" for name, floor in floors if means[name] < floor - _ROUNDING
    ]


def dropped(
    means: Mapping[str, float], earlier: Mapping[str, float], max_drop: float, metrics: Sequence[str] | None = None
) -> list[str]:
    """One line for each metric that fell by more than `max_drop`.

    Args:
        means: of now.
        earlier: of before.
        max_drop: absolute, at least 0.
        metrics: names to look at; None takes all that both have.

    Raises:
        UnknownNameError: the earlier means lack one of `metrics`.
        InputError: no metric in common, or a negative `max_drop`.

    Example:
        >>> dropped({"R@1": 0.38, "RR": 0.5}, {"R@1": 0.4, "RR": 0.505}, 0.01)
        ['R@1 fell from 0.4000 to 0.3800, by 0.0200, more than 0.01']
    """
    if not max_drop >= 0 or not math.isfinite(max_drop):
        raise InputError(f"--max-drop is {max_drop}; give a number of at least 0, such as 0.01")
    for name in metrics or ():
        if name not in earlier:
            raise UnknownNameError("metric of the baseline", name, earlier)
    names = list(metrics) if metrics is not None else [name for name in means if name in earlier]
    if not names:
        raise InputError(f"the baseline has none of the metrics {', '.join(means)}; name shared ones with --metric")
    return [
        f"{name} fell from {earlier[name]:.4f} to {means[name]:.4f}, by {earlier[name] - means[name]:.4f}, "
        f"more than {max_drop:g}"
        for name in names
        if earlier[name] - means[name] > max_drop + _ROUNDING
    ]


def _finite(means: Mapping[str, Any]) -> dict[str, float]:
    """Means as numbers; those that were not finite were stored as null and are left out."""
    return {str(name): float(value) for name, value in means.items() if value is not None}

"""Evaluation: ranking metrics, thresholds, reports.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearfar.eval.embeddings import EmbeddingResult, evaluate_embeddings
    from nearfar.eval.metrics import DEFAULT_METRICS
    from nearfar.eval.ranking import RankingResult, evaluate_run, recall_curve
    from nearfar.eval.ranking_arrays import evaluate_arrays
    from nearfar.eval.report import ModelSection, Report, write_report
    from nearfar.eval.thresholds.histograms import ScoreHistogram, score_histogram
    from nearfar.eval.thresholds.opis import OPISResult, opis

_MODULES = {
    "DEFAULT_METRICS": "metrics",
    "EmbeddingResult": "embeddings",
    "ModelSection": "report",
    "OPISResult": "thresholds.opis",
    "RankingResult": "ranking",
    "Report": "report",
    "ScoreHistogram": "thresholds.histograms",
    "evaluate_arrays": "ranking_arrays",
    "evaluate_embeddings": "embeddings",
    "evaluate_run": "ranking",
    "opis": "thresholds.opis",
    "recall_curve": "ranking",
    "score_histogram": "thresholds.histograms",
    "write_report": "report",
}

__all__ = [
    "DEFAULT_METRICS",
    "EmbeddingResult",
    "ModelSection",
    "OPISResult",
    "RankingResult",
    "Report",
    "ScoreHistogram",
    "evaluate_arrays",
    "evaluate_embeddings",
    "evaluate_run",
    "opis",
    "recall_curve",
    "score_histogram",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Evaluation: ranking metrics, thresholds, reports.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearfar.eval.clustering import ClusterAgreement, cluster_agreement
    from nearfar.eval.embeddings import EmbeddingResult, evaluate_embeddings
    from nearfar.eval.geometry import GeometryReport, describe_geometry
    from nearfar.eval.geometry_pairs import FalseNegativeSuspect
    from nearfar.eval.metrics import DEFAULT_METRICS
    from nearfar.eval.multiple_tests import benjamini_hochberg, holm
    from nearfar.eval.ranking import RankingResult, evaluate_run, recall_curve
    from nearfar.eval.ranking_arrays import evaluate_arrays
    from nearfar.eval.report import ModelSection, Report, write_report
    from nearfar.eval.run_comparison import Comparison, PairComparison
    from nearfar.eval.significance import compare_runs
    from nearfar.eval.thresholds.calibration import calibrate_threshold
    from nearfar.eval.thresholds.card import ClassFailure, ThresholdCard
    from nearfar.eval.thresholds.class_thresholds import ClassThresholds, calibrate_classes
    from nearfar.eval.thresholds.curves import PairCurves, pair_curves
    from nearfar.eval.thresholds.drift import DriftCheck
    from nearfar.eval.thresholds.histograms import ScoreHistogram, score_histogram
    from nearfar.eval.thresholds.opis import OPISResult, opis
    from nearfar.eval.thresholds.queries import calibrate_no_answer

_MODULES = {
    "DEFAULT_METRICS": "metrics",
    "ClassFailure": "thresholds.card",
    "ClassThresholds": "thresholds.class_thresholds",
    "ClusterAgreement": "clustering",
    "Comparison": "run_comparison",
    "DriftCheck": "thresholds.drift",
    "EmbeddingResult": "embeddings",
    "FalseNegativeSuspect": "geometry_pairs",
    "GeometryReport": "geometry",
    "ModelSection": "report",
    "OPISResult": "thresholds.opis",
    "PairComparison": "run_comparison",
    "PairCurves": "thresholds.curves",
    "RankingResult": "ranking",
    "Report": "report",
    "ScoreHistogram": "thresholds.histograms",
    "ThresholdCard": "thresholds.card",
    "benjamini_hochberg": "multiple_tests",
    "calibrate_classes": "thresholds.class_thresholds",
    "calibrate_no_answer": "thresholds.queries",
    "calibrate_threshold": "thresholds.calibration",
    "cluster_agreement": "clustering",
    "compare_runs": "significance",
    "describe_geometry": "geometry",
    "evaluate_arrays": "ranking_arrays",
    "evaluate_embeddings": "embeddings",
    "evaluate_run": "ranking",
    "holm": "multiple_tests",
    "opis": "thresholds.opis",
    "pair_curves": "thresholds.curves",
    "recall_curve": "ranking",
    "score_histogram": "thresholds.histograms",
    "write_report": "report",
}

__all__ = [
    "DEFAULT_METRICS",
    "ClassFailure",
    "ClassThresholds",
    "ClusterAgreement",
    "Comparison",
    "DriftCheck",
    "EmbeddingResult",
    "FalseNegativeSuspect",
    "GeometryReport",
    "ModelSection",
    "OPISResult",
    "PairComparison",
    "PairCurves",
    "RankingResult",
    "Report",
    "ScoreHistogram",
    "ThresholdCard",
    "benjamini_hochberg",
    "calibrate_classes",
    "calibrate_no_answer",
    "calibrate_threshold",
    "cluster_agreement",
    "compare_runs",
    "describe_geometry",
    "evaluate_arrays",
    "evaluate_embeddings",
    "evaluate_run",
    "holm",
    "opis",
    "pair_curves",
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

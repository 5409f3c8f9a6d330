"""Evaluation: ranking metrics, thresholds, reports."""

from __future__ import annotations

from nearfar.eval.embeddings import EmbeddingResult
from nearfar.eval.ranking import RankingResult
from nearfar.eval.thresholds.histograms import ScoreHistogram
from nearfar.eval.thresholds.opis import OPISResult

__all__ = ["EmbeddingResult", "OPISResult", "RankingResult", "ScoreHistogram"]

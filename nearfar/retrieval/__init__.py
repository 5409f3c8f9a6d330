"""Retrieval: encoders, fine-tuning, the vector index and the retriever; names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearfar.retrieval.encoders import EncoderFingerprint, fingerprint, load_encoder
    from nearfar.retrieval.evaluation import ModelEvaluation, evaluate_retriever
    from nearfar.retrieval.frontier import measure_frontier
    from nearfar.retrieval.index.results import Hit, SearchResult
    from nearfar.retrieval.index.vector_index import VectorIndex
    from nearfar.retrieval.mining import MiningReport, mine_negatives
    from nearfar.retrieval.retriever import Retriever
    from nearfar.retrieval.thresholds import calibrate_search, calibrate_texts, load_threshold, save_threshold
    from nearfar.retrieval.training.evaluator import ClassEvaluator, RetrievalEvaluator
    from nearfar.retrieval.training.fine_tune import FineTuneResult, fine_tune
    from nearfar.retrieval.training.options import LoraOptions, TrainingOptions
    from nearfar.retrieval.training.recipe import Recipe, read_recipe, run_recipe
    from nearfar.retrieval.training.tensor_data import TensorData, embed

_MODULES = {
    "ClassEvaluator": "training.evaluator",
    "RetrievalEvaluator": "training.evaluator",
    "evaluate_retriever": "evaluation",
    "ModelEvaluation": "evaluation",
    "EncoderFingerprint": "encoders",
    "FineTuneResult": "training.fine_tune",
    "Hit": "index.results",
    "LoraOptions": "training.options",
    "MiningReport": "mining",
    "Recipe": "training.recipe",
    "Retriever": "retriever",
    "SearchResult": "index.results",
    "TensorData": "training.tensor_data",
    "TrainingOptions": "training.options",
    "VectorIndex": "index.vector_index",
    "calibrate_search": "thresholds",
    "calibrate_texts": "thresholds",
    "embed": "training.tensor_data",
    "fine_tune": "training.fine_tune",
    "fingerprint": "encoders",
    "load_encoder": "encoders",
    "load_threshold": "thresholds",
    "read_recipe": "training.recipe",
    "run_recipe": "training.recipe",
    "measure_frontier": "frontier",
    "mine_negatives": "mining",
    "save_threshold": "thresholds",
}

__all__ = [
    "ClassEvaluator",
    "EncoderFingerprint",
    "FineTuneResult",
    "Hit",
    "LoraOptions",
    "MiningReport",
    "ModelEvaluation",
    "Recipe",
    "RetrievalEvaluator",
    "Retriever",
    "SearchResult",
    "TensorData",
    "TrainingOptions",
    "VectorIndex",
    "calibrate_search",
    "calibrate_texts",
    "embed",
    "evaluate_retriever",
    "fine_tune",
    "fingerprint",
    "load_encoder",
    "load_threshold",
    "measure_frontier",
    "mine_negatives",
    "read_recipe",
    "run_recipe",
    "save_threshold",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

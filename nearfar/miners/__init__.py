"""Mining: which samples to put in a batch, and which pairs of a batch to learn from; names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearfar.miners.angular import AngularMiner
    from nearfar.miners.batch_hard import BatchHardMiner
    from nearfar.miners.class_balanced import ClassBalancedBatchSampler
    from nearfar.miners.confusion_tuples import ConfusionTupleSampler
    from nearfar.miners.distance_weighted import DistanceWeightedMiner
    from nearfar.miners.global_proxy import GlobalProxyMiner
    from nearfar.miners.hard_negatives import HardNegativeMiner, MinedNegatives
    from nearfar.miners.memory import EmbeddingMemory
    from nearfar.miners.mining_queries import MiningQueries
    from nearfar.miners.multi_similarity import MultiSimilarityMiner
    from nearfar.miners.negative_filters import NegativeFilters
    from nearfar.miners.triplet_margin import TripletMarginMiner

# Name -> module, so that none pays for the imports of the others.
_MODULES: dict[str, str] = {
    "AngularMiner": "angular",
    "BatchHardMiner": "batch_hard",
    "ClassBalancedBatchSampler": "class_balanced",
    "ConfusionTupleSampler": "confusion_tuples",
    "DistanceWeightedMiner": "distance_weighted",
    "EmbeddingMemory": "memory",
    "GlobalProxyMiner": "global_proxy",
    "HardNegativeMiner": "hard_negatives",
    "MinedNegatives": "hard_negatives",
    "MiningQueries": "mining_queries",
    "MultiSimilarityMiner": "multi_similarity",
    "NegativeFilters": "negative_filters",
    "TripletMarginMiner": "triplet_margin",
}

__all__ = [
    "AngularMiner",
    "BatchHardMiner",
    "ClassBalancedBatchSampler",
    "ConfusionTupleSampler",
    "DistanceWeightedMiner",
    "EmbeddingMemory",
    "GlobalProxyMiner",
    "HardNegativeMiner",
    "MinedNegatives",
    "MiningQueries",
    "MultiSimilarityMiner",
    "NegativeFilters",
    "TripletMarginMiner",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

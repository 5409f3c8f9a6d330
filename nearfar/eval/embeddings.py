"""Leave-one-out retrieval metrics of labelled embeddings, the protocol of metric learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EmbeddingResult:
    """How well each sample finds the others of its class.

    Attributes:
        query_indices: int64 array (Q,), rows of the embeddings that were queries (their class has another sample).
        per_query: for each metric name a float64 array (Q,), aligned with `query_indices`.
        mean: for each metric name the mean over the queries.
        singletons: int64 array, rows alone in their class; they stay in the gallery but are no queries.
        class_count: number of distinct labels.
    """

    query_indices: NDArray[np.int64]
    per_query: dict[str, NDArray[np.float64]]
    mean: dict[str, float]
    singletons: NDArray[np.int64]
    class_count: int

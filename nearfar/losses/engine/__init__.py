"""The streaming engine: it walks a matrix of similarities in tiles and never holds the whole.

A loss is a short declaration that the engine runs. It has one of three forms, and any of them may prepare its
operands first (class means, drawn margins, moving averages):

1. row-local: a value per row from that row of similarities (``row_local``); gradients in one pass
2. statistics: sums, maxima and log-sum-exps over rows, columns or everything, then a formula on these small tensors
   (``statistics``); gradients in a second pass. ``class_statistics`` is this form for very many class weights
3. whole-set: plain torch on the dense matrix, its memory documented
"""

from nearfar.losses.engine.classes import ClassStatistics, Logit, class_statistics
from nearfar.losses.engine.comparison import Comparison, Space, Tile
from nearfar.losses.engine.reductions import masked_logsumexp, segment_logsumexp, segment_sum, softplus
from nearfar.losses.engine.row_local import RowGradient, RowValues, row_local, row_values
from nearfar.losses.engine.similarity import Dot, Euclidean, Similarity, UnitEuclidean, unit
from nearfar.losses.engine.statistics import LogSumExp, Maximum, Statistic, Sum, statistics
from nearfar.losses.engine.targets import (
    FunctionTarget,
    LabelTarget,
    MultiHotTarget,
    PairTarget,
    RelevanceTarget,
    Target,
    TargetTile,
)

__all__ = [
    "ClassStatistics",
    "Comparison",
    "Dot",
    "Euclidean",
    "FunctionTarget",
    "LabelTarget",
    "LogSumExp",
    "Logit",
    "Maximum",
    "MultiHotTarget",
    "PairTarget",
    "RelevanceTarget",
    "RowGradient",
    "RowValues",
    "Similarity",
    "Space",
    "Statistic",
    "Sum",
    "Target",
    "TargetTile",
    "Tile",
    "UnitEuclidean",
    "class_statistics",
    "masked_logsumexp",
    "row_local",
    "row_values",
    "segment_logsumexp",
    "segment_sum",
    "softplus",
    "statistics",
    "unit",
]

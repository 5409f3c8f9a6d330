"""Mixtures of two unit vectors, known by their similarities alone: no mixture is ever stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nearfar.losses.engine import Comparison
from nearfar.losses.engine.active_pairs import dot_products
from nearfar.losses.engine.targets import Pairs


@dataclass(frozen=True)
class Mixtures:
    """Which examples are mixed for which anchor, (P,) each.

    Attributes:
        anchors: rows of the comparison.
        firsts: columns of the examples that enter with the ratio; None where the anchor itself takes their place.
        seconds: columns of the examples that enter with the rest.
    """

    anchors: Tensor
    firsts: Tensor | None
    seconds: Tensor


def mixture_similarity(
    comparison: Comparison, mixed: Mixtures, ratio: float | Tensor, path: Literal["streamed", "dense"]
) -> Tensor:
    """Cosine of each anchor and its mixture brought to unit length, (P,); 0 where the two parts cancel.

    Args:
        comparison: anchors and references of unit length, or zero.
        mixed: the parts.
        ratio: of the first part, one for all or (P,).
        path: "streamed" gathers few vectors at once; "dense" all of them, and can be differentiated twice.
    """
    rows, columns = comparison.rows, comparison.columns
    product = dot_products if path == "streamed" else _gathered_products
    near = product(rows, columns, (mixed.anchors, mixed.seconds))  # (P,)
    row_square, column_square = (side.detach().square().sum(1) for side in (rows, columns))  # 1, or 0 for a zero vector
    if mixed.firsts is None:
        own, between, square = row_square[mixed.anchors], near, row_square[mixed.anchors]
    else:
        own = product(rows, columns, (mixed.anchors, mixed.firsts))  # (P,)
        between = product(columns, columns, (mixed.firsts, mixed.seconds))  # (P,)
        square = column_square[mixed.firsts]
    rest = 1 - ratio
    # |v|^2 of v = ratio * x + rest * x'.
    length = ratio**2 * square + rest**2 * column_square[mixed.seconds] + 2 * ratio * rest * between
    opposite = length <= 8 * torch.finfo(length.dtype).eps  # such a mixture has no direction
    length = length.masked_fill(opposite, math.inf).sqrt()
    return (ratio * own + rest * near) / length


def _gathered_products(rows: Tensor, columns: Tensor, pairs: Pairs) -> Tensor:
    return (rows[pairs[0]] * columns[pairs[1]]).sum(1)

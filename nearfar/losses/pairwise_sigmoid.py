"""What BiXSE and SigLIP share: a binary cross-entropy for every pair, with a bias and a scale that may be learned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from nearfar.losses.checks import check_choice
from nearfar.losses.contract import Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import Comparison, RowGradient, RowValues, Space, Tile, softplus

_LARGEST_EXPONENT = 80.0  # its exponential is a float32

Normalise = Literal["rows", "pairs"]


class PairwiseSigmoidLoss(QueryDocumentLoss):
    r"""Base: the sum of :math:`\operatorname{softplus}(l) - z\, l` with :math:`l = e^{a} \cos + b` and grade z.

    Args:
        temperature: see ``QueryDocumentLoss``.
        scale: see ``QueryDocumentLoss``.
        bias: initial b.
        learn_scale: make the log-scale a a parameter.
        largest_scale: upper bound of a learned scale, whose lower bound is then 1; None for no bounds.
        normalise: "rows" or "pairs".
        false_negative_margin: see ``QueryDocumentLoss``.
        reduction: see ``Loss``.
        path: see ``Loss``.
        gather_across_devices: see ``Loss``; False.
    """

    closed_form_names = ("bias",)

    def __init__(
        self,
        temperature: float | None,
        scale: float | None,
        *,
        bias: float,
        learn_scale: bool,
        largest_scale: float | None,
        normalise: Normalise,
        false_negative_margin: float | None,
        reduction: Reduction,
        path: Path,
        gather_across_devices: bool,
    ) -> None:
        super().__init__(
            temperature,
            scale,
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        self.normalise = check_choice("normalise", normalise, ("rows", "pairs"))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale))) if learn_scale else None
        self.largest_scale = largest_scale

    def compute(self, comparison: Comparison) -> Tensor:
        """Sum over the pairs, over the queries or pairs that count; or a value per query."""
        operands = self.operands(comparison)
        log_scale = operands.pop("log_scale", None)
        scale = self.scale if log_scale is None else log_scale.exp()
        # Scaling the queries in place of the tiles saves passes over these, and finds the gradient of a learned scale.
        rows = scale * comparison.rows
        if self._masks_by_score:
            operands["scale"] = torch.as_tensor(scale, dtype=rows.dtype, device=rows.device).detach()
        return super().compute(replace(comparison, rows=rows, parameters=operands))

    def operands(self, comparison: Comparison) -> dict[str, Tensor]:
        """Bias, and log-scale where it is learned."""
        if self.log_scale is None:
            return {"bias": self.bias}
        if self.largest_scale is None:
            return {"bias": self.bias, "log_scale": self.log_scale}
        return {"bias": self.bias, "log_scale": self.log_scale.clamp(0, math.log(self.largest_scale))}

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query, and which queries count or how many pairs do, from similarities that are scaled already."""
        positive = tile.target.positive
        valid = positive | self.negatives(tile)
        logits = tile.similarity + tile.parameters["bias"]  # (rows, columns)
        grades = tile.target.relevance(logits.dtype).masked_fill(~positive, 0.0)
        terms = (softplus(logits) - grades * logits).masked_fill(~valid, 0.0)  # (rows, columns)
        return self._counted(terms.sum(1), valid.sum(1))

    def negatives(self, tile: Tile) -> Tensor:
        """The negatives of a tile (rows, columns), without those too close to the query's best positive."""
        if not self._masks_by_score:
            return tile.target.negative
        return super().negatives(replace(tile, similarity=tile.similarity.detach() / tile.parameters["scale"]))

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: every pair as a negative, then the few positives put right."""
        target = tile.target
        pairs = rows, columns = target.positive_pairs()
        non_negatives = target.non_negative_pairs()
        grades = target.positive_weights(pairs, tile.similarity.dtype)  # (P,)

        logits = tile.similarity.add_(tile.parameters["bias"])  # (rows, columns)
        own = logits[rows, columns]  # (P,)
        logits[non_negatives] = -torch.inf
        values, slope = _softplus_sums(logits, tile.space)  # (rows,), (rows, columns)
        values.index_add_(0, rows, softplus(own) - grades * own)
        slope[rows, columns] = own.sigmoid() - grades
        count, width = slope.shape
        number = width - torch.bincount(non_negatives[0], minlength=count) + torch.bincount(rows, minlength=count)
        return *self._counted(values, number), slope, {"bias": slope.sum()}

    def _counted(self, values: Tensor, number: Tensor) -> RowValues:
        if self.normalise == "rows":
            return values, number > 0
        if self.reduction == "none":
            return values / number.clamp(min=1), number > 0
        return values, number


def _softplus_sums(logits: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """Softplus summed over each row (rows,), and its slope, the sigmoid (rows, columns). Overwrites ``logits``.

    One exponential gives both; torch's logsigmoid and sigmoid take three times as long together.
    """
    if logits.device.type == "cpu" and logits.numel() and logits.amax() <= _LARGEST_EXPONENT:
        power, beyond = logits.exp_(), None
    else:  # an accelerator would wait for the answer
        power = logits.clamp(max=_LARGEST_EXPONENT).exp_()
        beyond = logits.sub_(_LARGEST_EXPONENT).relu_().sum(1)  # (rows,); there softplus is linear, to full precision
    other = space("other", power)
    values = torch.log1p(power, out=other).sum(1)
    return values if beyond is None else values.add_(beyond), power.div_(torch.add(power, 1, out=other))

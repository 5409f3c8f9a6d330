"""InfoNCE: https://arxiv.org/abs/1807.03748 (van den Oord et al., 2018).

Softmax cross-entropy that picks a query's document among all of the batch, streamed in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.contract import Path, QueryDocumentLoss, Reduction
from nearfar.losses.engine import (
    Comparison,
    LogSumExp,
    RowGradient,
    RowValues,
    Statistic,
    Sum,
    Tile,
    masked_logsumexp,
    segment_sum,
    statistics,
)
from nearfar.losses.engine.statistics import Axis
from nearfar.losses.engine.targets import Pairs

# Logits of a tile that differ by no more than this from their middle have exponentials whose sums, and whose shares of
# a sum, are normal float32 numbers: one exponential then serves rows and columns. A share that underflows beside much
# larger logits of other tiles is below 1e-9. Elsewhere each direction subtracts its own maximum.
_WIDEST_PLAIN = 64


class InfoNCELoss(QueryDocumentLoss):
    r"""InfoNCE, known to sentence-transformers as multiple negatives ranking loss and to CLIP in its symmetric form.

    .. math::
        L_i = \frac1{|P_i|} \sum_{p \in P_i} w_{ip} \Bigl(\operatorname{LSE}_{j \in P_i \cup N_i} s_{ij} - s_{ip}\Bigr),
        \qquad s = \cos / \text{temperature}

    averaged over the queries that have a positive; w is the graded relevance (1 for plain positives). With
    ``symmetric`` it is the mean of this and of the same from documents to queries, averaged over the documents that
    have a positive. Several positives of a query compete with each other; ``DecoupledSoftmaxLoss`` avoids that.

    Args:
        temperature: divides the cosine; 0.05 (sentence-transformers' scale of 20).
        scale: multiplies the cosine, instead of ``temperature``.
        symmetric: also pick the query among all queries for every document.
        false_negative_margin: see ``QueryDocumentLoss``; None (off). A pair that it drops counts in neither direction.
        reduction: "mean"; "none" only without ``symmetric``.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for both ``temperature`` and ``scale``, ``reduction="none"`` with ``symmetric``, grades outside
            [0, 1], or misfitting shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import InfoNCELoss
        >>> queries, documents = torch.eye(3), torch.eye(3)
        >>> round(InfoNCELoss(temperature=1)(queries, documents).item(), 4)
        0.5514

    Source: equal to sentence-transformers' ``MultipleNegativesRankingLoss`` (with
    ``directions=("query_to_doc", "doc_to_query")`` and ``partition_mode="per_direction"`` when symmetric) where each
    query has one positive. Streaming the normaliser follows https://arxiv.org/abs/2411.09009 and https://arxiv.org/abs/2410.17243.
    """

    paper = "https://arxiv.org/abs/1807.03748"
    citation = """@misc{oord2018representation,
    title = {Representation Learning with Contrastive Predictive Coding},
    author = {van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},
    year = {2018},
    eprint = {1807.03748},
    archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        temperature: float | None = None,
        *,
        scale: float | None = None,
        symmetric: bool = False,
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if temperature is None and scale is None:
            temperature = 0.05
        super().__init__(
            temperature,
            scale,
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        if symmetric and reduction == "none":
            raise InputError("symmetric=True averages over queries and over documents: use reduction='mean'")
        self.symmetric = symmetric

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"symmetric": self.symmetric, **super().settings()}

    def compute(self, comparison: Comparison) -> Tensor:
        """Mean over the queries that count, or over both sides, or a value per query."""
        return self._both_ways(comparison) if self.symmetric else super().compute(comparison)

    # From queries to documents

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query, and the queries that have a positive."""
        positive = tile.target.positive
        valid = positive | self.negatives(tile)
        best = tile.similarity.detach().masked_fill(~valid, -torch.inf).amax(1, keepdim=True)  # (rows, 1)
        best = best.masked_fill(best == -torch.inf, 0.0)
        logits = self.scale * (tile.similarity - best)  # (rows, columns)
        weights = tile.target.relevance(logits.dtype).masked_fill(~positive, 0.0)
        terms = masked_logsumexp(logits, valid)[:, None] - logits  # (rows, columns)
        # A row without a single valid pair has an infinite term; its weights are 0.
        values = (weights * terms.masked_fill(~positive, 0.0)).sum(1) / positive.sum(1).clamp(min=1)
        return values, tile.target.has_positive()

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form."""
        s, target = tile.similarity, tile.target
        pairs = rows, columns = target.positive_pairs()
        number = torch.bincount(rows, minlength=len(s)).clamp_(min=1)  # (rows,)
        share = target.positive_weights(pairs, s.dtype) / number[rows]  # (P,)

        push = tile.space("push", s).copy_(s)  # (rows, columns)
        _drop_ignored(push, target.non_negative_pairs(), pairs, -torch.inf)
        push.sub_(push.amax(1, keepdim=True).clamp_(min=-1e30)).mul_(self.scale)
        own = push[rows, columns]  # (P,)
        total = push.exp_().sum(1)  # (rows,)
        values = segment_sum(share * (total.log()[rows] - own), rows, len(s))

        per_row = segment_sum(share, rows, len(s)) * self.scale / total.clamp(min=1e-38)
        gradient = push.mul_(per_row[:, None])  # (rows, columns)
        gradient[rows, columns] -= share * self.scale
        return values, target.has_positive(), gradient

    # Both ways

    def _both_ways(self, comparison: Comparison) -> Tensor:
        axes: dict[str, Axis] = {"row": "rows", "column": "columns"}
        kinds: dict[str, Statistic] = {}
        for side, axis in axes.items():
            kinds[f"{side}_lse"] = LogSumExp(axis)
            kinds[f"{side}_pull"] = Sum(axis)
            kinds[f"{side}_weight"] = Sum(axis, differentiable=False)
            kinds[f"{side}_number"] = Sum(axis, differentiable=False)
        if self.path == "dense" or self._masks_by_score:
            found = statistics(comparison, kinds, self._masked_partials, self.path, whole_rows=self._masks_by_score)
        else:
            logits = replace(comparison, rows=comparison.rows * self.scale)
            found = statistics(logits, kinds, self._listed_partials, tile_gradient=self._tile_gradient)
        sides = [_mean(*(found[f"{side}_{name}"] for name in ("lse", "pull", "weight", "number"))) for side in axes]
        return (sides[0] + sides[1]) / 2

    def _masked_partials(self, tile: Tile) -> dict[str, Tensor]:
        positive, logits = tile.target.positive, tile.similarity * self.scale
        valid = positive | self.negatives(tile)
        weights = tile.target.relevance(logits.dtype).masked_fill(~positive, 0.0)
        found = {}
        for side, dim in (("row", 1), ("column", 0)):
            found[f"{side}_lse"] = masked_logsumexp(logits, valid, dim)
            found[f"{side}_pull"] = (weights * logits).sum(dim)
            found[f"{side}_weight"] = weights.sum(dim)
            found[f"{side}_number"] = positive.sum(dim).to(logits.dtype)
        return found

    def _listed_partials(self, tile: Tile) -> dict[str, Tensor]:
        """From similarities that are scaled already, with lists of the pairs that are no negatives."""
        logits, target = tile.similarity, tile.target
        pairs = target.positive_pairs()
        weights = target.positive_weights(pairs, logits.dtype)  # (P,)
        pull = logits[pairs] * weights
        middle = self._middle(logits)
        mass = logits if middle is None else _exponentials(logits, middle)  # (rows, columns)
        _drop_ignored(mass, target.non_negative_pairs(), pairs, -torch.inf if middle is None else 0.0)
        found = {}
        for side, dim in (("row", 1), ("column", 0)):
            index, count = pairs[1 - dim], logits.shape[1 - dim]
            found[f"{side}_lse"] = mass.logsumexp(dim) if middle is None else mass.sum(dim).log_().add_(middle)
            found[f"{side}_pull"] = segment_sum(pull, index, count)
            found[f"{side}_weight"] = segment_sum(weights, index, count)
            found[f"{side}_number"] = segment_sum(torch.ones_like(weights), index, count)
        return found

    def _tile_gradient(self, tile: Tile, merged: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> Tensor:
        """Gradient on similarities that are scaled already."""
        logits, target = tile.similarity, tile.target
        pairs = rows, columns = target.positive_pairs()
        push_row, push_column = cotangents["row_lse"], cotangents["column_lse"]
        # An empty row or column has an infinite log-sum-exp and no gradient.
        row_lse = merged["row_lse"].clamp(min=-1e30)
        column_lse = merged["column_lse"].clamp(min=-1e30)
        middle = self._middle(logits)
        if middle is not None:
            row_factor = push_row * (middle - row_lse).clamp_(max=_WIDEST_PLAIN).exp_()  # (rows,)
            column_factor = push_column * (middle - column_lse).clamp_(max=_WIDEST_PLAIN).exp_()  # (columns,)
            factor = torch.add(row_factor[:, None], column_factor, out=tile.space("factor", logits))
            gradient = _exponentials(logits, middle).mul_(factor)  # (rows, columns)
        else:
            gradient = (logits - column_lse).exp_().mul_(push_column)
            gradient.addcmul_((logits - row_lse[:, None]).exp_(), push_row[:, None])
        _drop_ignored(gradient, target.non_negative_pairs(), pairs, 0.0)
        pull = cotangents["row_pull"][rows] + cotangents["column_pull"][columns]  # (P,)
        gradient[rows, columns] += pull * target.positive_weights(pairs, logits.dtype)
        return gradient

    def _middle(self, logits: Tensor) -> float | None:
        """What to subtract from all logits of a tile before their exponential; None where nothing serves all."""
        if self.scale <= _WIDEST_PLAIN:
            return 0.0
        if logits.device.type != "cpu":  # it would wait for the answer
            return None
        lowest, highest = (bound.item() for bound in torch.aminmax(logits))
        return (lowest + highest) / 2 if highest - lowest <= 2 * _WIDEST_PLAIN else None


def _exponentials(logits: Tensor, middle: float) -> Tensor:
    """In place."""
    return (logits.sub_(middle) if middle else logits).exp_()


def _drop_ignored(matrix: Tensor, non_negatives: Pairs, positives: Pairs, value: float) -> Tensor:
    """Set pairs that are neither positive nor negative to ``value``, in place."""
    own = matrix[positives]
    matrix[non_negatives] = value
    matrix[positives] = own
    return matrix


def _mean(lse: Tensor, pull: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    """Mean over the rows (or columns) that have a positive, of the mean over their positives."""
    counted = number > 0
    values = (weight * lse.masked_fill(~counted, 0.0) - pull) / number.clamp(min=1)
    return values.sum() / counted.sum().clamp(min=1)

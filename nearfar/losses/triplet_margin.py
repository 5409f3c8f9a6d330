"""Triplet loss: https://arxiv.org/abs/1503.03832 (Schroff et al., CVPR 2015).

An anchor's positives shall be nearer than its negatives, by a margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss
from nearfar.losses.draws import SeededDraws
from nearfar.losses.engine import Comparison, RowGradient, RowValues, Tile, UnitEuclidean, row_local, softplus
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.hard_negative_mixing import HardNegativeMixing
from nearfar.losses.label_batch import LabelBatch, check_label_batch, normalise
from nearfar.losses.metrix import Metrix

_CHUNK = 2**15  # explicit triplets held at a time
Triplets = tuple[Tensor, Tensor, Tensor]  # anchors (T,), positives (T,), negatives (T,)


class TripletMarginLoss(RowLocalLabelLoss):
    r"""Triplet loss on labels, under pytorch-metric-learning's name and defaults.

    .. math:: L = \operatorname{mean}_{(i, p, n):\, L_{ipn} > 0} L_{ipn}, \qquad L_{ipn} = [d_{ip} - d_{in} + m]_+

    on Euclidean distances d of unit vectors, over all triplets whose loss is above 0, as pytorch-metric-learning's
    default ``AvgNonZeroReducer`` does.

    Args:
        margin: m; 0.05 (pytorch-metric-learning), 0.2 on squared distances in the paper (from memory).
        swap: let the positive take the anchor's place where it is nearer to the negative
            (http://www.bmva.org/bmvc/2016/papers/paper119).
        smooth_loss: softplus in place of the hinge; every triplet then counts.
        triplets_per_anchor: "all", or how many random triplets to draw for each anchor that has any.
        mining: "all"; "semihard" for triplets whose negative is farther than the positive but within the margin
            (pytorch-metric-learning's ``TripletMarginMiner`` of that type); "hard" for each anchor's farthest positive
            with its nearest negative (its ``BatchHardMiner``, https://arxiv.org/abs/1703.07737).
        seed: of the random triplets. How many batches were drawn is part of the state, so a restored loss goes on
            where it stopped.
        reduction: "mean" only: the mean is over triplets, not over rows.
        path: "streamed" needs time, but no memory, for all triplets; "dense" holds them all, (B, N, N).
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar. ``indices_tuple`` of three tensors names the triplets
        themselves (with ``mining="hard"``, the pairs to choose from); of four, all triplets of the named pairs.

    Raises:
        InputError: for an unknown option, ``reduction="none"``, random triplets of multi-hot labels, or when a shape
            does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import TripletMarginLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(TripletMarginLoss()(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.312

    Source: pytorch-metric-learning. There ``swap`` fails, or takes wrong distances, with references; a triplet mined
    twice counts twice (here once); and all triplets of a batch are listed.
    """

    paper = "https://arxiv.org/abs/1503.03832"
    capabilities = Capabilities(inputs="labels", unreduced=False)
    citation = """@inproceedings{schroff2015facenet,
    title = {{FaceNet}: A Unified Embedding for Face Recognition and Clustering},
    author = {Schroff, Florian and Kalenichenko, Dmitry and Philbin, James},
    booktitle = {CVPR},
    year = {2015}
}"""

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: int | Literal["all"] = "all",
        mining: Literal["all", "semihard", "hard"] = "all",
        *,
        seed: int = 0,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.margin, self.swap, self.smooth_loss = margin, swap, smooth_loss
        self.mining = check_choice("mining", mining, ("all", "semihard", "hard"))
        if triplets_per_anchor != "all" and (not isinstance(triplets_per_anchor, int) or triplets_per_anchor < 1):
            raise InputError(f'triplets_per_anchor={triplets_per_anchor!r}: give "all" or a number above 0')
        if triplets_per_anchor != "all" and mining == "hard":
            raise InputError('mining="hard" makes one triplet per anchor: use triplets_per_anchor="all" with it')
        self.triplets_per_anchor, self.seed = triplets_per_anchor, seed
        self.draws = None if triplets_per_anchor == "all" else SeededDraws(seed)
        # Random triplets of a shared batch must be the same on all processes.
        self.splits_rows = triplets_per_anchor == "all"

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        shape = {"margin": self.margin, "swap": self.swap, "smooth_loss": self.smooth_loss}
        choice = {"triplets_per_anchor": self.triplets_per_anchor, "mining": self.mining, "seed": self.seed}
        return {**shape, **choice, **super().settings()}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        mixing: Metrix | None = None,
        synthesis: HardNegativeMixing | None = None,
    ) -> Tensor:
        """The loss; see ``LabelLoss.forward`` and, for ``indices_tuple``, the class."""
        asked = mixing is not None or synthesis is not None
        if asked or indices_tuple is None or len(indices_tuple) != 3 or self.mining == "hard":
            return super().forward(
                embeddings, labels, indices_tuple, ref_emb, ref_labels, mixing=mixing, synthesis=synthesis
            )
        batch = check_label_batch(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        assert batch.pairs is not None
        anchors, positives, _, negatives = batch.pairs
        named = torch.stack([anchors, positives, negatives])  # (3, T)
        if len(anchors):
            named = torch.unique(named, dim=1)
        return self._of_triplets(batch, (named[0], named[1], named[2]))

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the triplets that count."""
        if batch.pairs is None and isinstance(self.triplets_per_anchor, int):
            return self._of_triplets(batch, self._draw(batch, self.triplets_per_anchor))
        dense = self.path == "dense"
        rows = self._every_triplet if dense else self.rows
        total, count = row_local(self.compare(batch), rows, self.rows_with_gradient, self.path)
        return total / count.clamp(min=1)

    def compare(self, batch: LabelBatch) -> Comparison:
        """Distances of unit vectors."""
        cosine = batch.cosine()
        # Swapping needs distances between references, beside those to the anchors.
        points = {"points": cosine.columns} if self.swap else {}
        return replace(cosine, similarity=UnitEuclidean(), parameters=points)

    # All triplets of the pairs of a tile

    def rows(self, tile: Tile) -> RowValues:
        """Sum over the anchor's triplets, and how many have a loss; one positive per anchor at a time."""
        d, (positive, negative) = tile.similarity, self._candidates(tile)
        near = d.masked_fill(~negative, torch.inf)  # (rows, columns)
        values = d.new_zeros(len(d))
        counts = torch.zeros(len(d), dtype=torch.int64, device=d.device)
        pairs = positive.nonzero(as_tuple=True)
        for rows, columns in _by_rank((pairs[0], pairs[1]), len(d)):
            value, count = checkpoint(
                self._one_positive, d, near, rows, columns, tile.parameters.get("points"), use_reentrant=False
            )
            values = values.index_add(0, rows, value)
            counts.index_add_(0, rows, count)
        return values, counts

    def _one_positive(
        self, d: Tensor, near: Tensor, rows: Tensor, columns: Tensor, points: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        between = None if points is None else UnitEuclidean().dense(points[columns], points)  # (P, columns)
        terms = self._terms(d[rows, columns][:, None], near[rows], between)  # (P, columns)
        return terms.sum(1), (terms > 0).sum(1)

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form, without ``swap``."""
        d, target = tile.similarity, tile.target
        pairs = target.positive_pairs()
        if self.mining == "hard":
            positive, negative = self._candidates(tile)
            rows, columns = positive.nonzero(as_tuple=True)
            pairs = rows, columns
            near = d.masked_fill(~negative, torch.inf)  # (rows, columns)
        else:
            near = tile.space("near", d).copy_(d)  # (rows, columns)
            near[target.non_negative_pairs()] = torch.inf
        values, counts = d.new_zeros(len(d)), torch.zeros(len(d), dtype=torch.int64, device=d.device)
        gradient, work = tile.space("gradient", d).zero_(), tile.space("work", d)
        for rows, columns in _by_rank(pairs, len(d)):
            own, everyone = d[rows, columns][:, None], len(rows) == len(d)
            others = near if everyone else near[rows]  # (P, columns)
            terms = torch.sub(own + self.margin, others, out=work if everyone else None)  # (P, columns)
            if self.mining == "semihard":
                terms.masked_fill_(~self._is_semihard(own, others), -torch.inf)
            if self.smooth_loss:
                slope, number = terms.sigmoid(), (terms > -torch.inf).sum(1)
                values.index_add_(0, rows, softplus(terms).sum(1))
                pulled = slope.sum(1)  # (P,)
            else:
                values.index_add_(0, rows, terms.relu_().sum(1))
                slope = terms.sign_()
                pulled = slope.sum(1)  # (P,)
                number = pulled.long()
            counts.index_add_(0, rows, number)
            gradient[rows, columns] += pulled
            if everyone:
                gradient.sub_(slope)
            else:
                gradient.index_add_(0, rows, slope, alpha=-1)
        return values, counts, gradient

    def _every_triplet(self, tile: Tile) -> RowValues:
        """The same with all triplets at once."""
        d, (positive, negative) = tile.similarity, self._candidates(tile)
        near = d.masked_fill(~negative, torch.inf)  # (rows, columns)
        points = tile.parameters.get("points")
        between = None if points is None else UnitEuclidean().dense(points, points)  # (columns, columns)
        terms = self._terms(d[:, :, None], near[:, None, :], between)  # (rows, columns, columns)
        terms = terms.masked_fill(~positive[:, :, None], 0.0)
        return terms.sum((1, 2)), (terms > 0).sum((1, 2))

    def _terms(self, own: Tensor, near: Tensor, between: Tensor | None) -> Tensor:
        """Loss of triplets from their distances; an infinite ``near`` is no negative."""
        chosen = near < torch.inf
        if self.mining == "semihard":
            chosen = chosen & self._is_semihard(own, near)
        if between is not None:
            # A positive that equals the anchor is as near as the anchor: rounding must not send it the gradient.
            nearer = between < near * (1 - 8 * torch.finfo(near.dtype).eps)
            near = torch.where(nearer, between, near)
        violation = own + self.margin - near
        violation = violation.masked_fill(~chosen, -torch.inf)
        return softplus(violation) if self.smooth_loss else violation.relu()

    def _is_semihard(self, own: Tensor, near: Tensor) -> Tensor:
        return (near > own) & (near <= own + self.margin)

    def _candidates(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Positives and negatives that triplets are made of, boolean (rows, columns)."""
        positive, negative = tile.target.positive, tile.target.negative
        if self.mining != "hard":
            return positive, negative
        fixed = tile.similarity.detach()
        column = torch.arange(fixed.shape[1], device=fixed.device)
        farthest = fixed.masked_fill(~positive, -torch.inf).argmax(1, keepdim=True)  # (rows, 1)
        nearest = fixed.masked_fill(~negative, torch.inf).argmin(1, keepdim=True)  # (rows, 1)
        return positive & (column == farthest), negative & (column == nearest)

    # Named triplets

    def _of_triplets(self, batch: LabelBatch, triplets: Triplets) -> Tensor:
        """Mean over the named triplets that count, a chunk at a time."""
        x = normalise(batch.embeddings)
        y = x if batch.is_self else normalise(batch.ref_emb)
        total, count = (x.sum() + y.sum()) * 0, torch.zeros((), dtype=torch.int64, device=x.device)
        for chunk in zip(*(torch.split(part, _CHUNK) for part in triplets), strict=True):
            value, number = checkpoint(self._chunk, x, y, *chunk, use_reentrant=False)
            total, count = total + value, count + number
        return self.average(total, count)

    def _chunk(self, x: Tensor, y: Tensor, a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        anchor, positive, negative = x[a], y[p], y[n]  # (T, D)
        norm = torch.linalg.vector_norm
        between = norm(positive - negative, dim=1) if self.swap else None  # (T,)
        terms = self._terms(norm(anchor - positive, dim=1), norm(anchor - negative, dim=1), between)  # (T,)
        return terms.sum(), (terms > 0).sum()

    def _draw(self, batch: LabelBatch, per_anchor: int) -> Triplets:
        """Random triplets: ``per_anchor`` for each anchor with a positive and a negative, with replacement."""
        assert batch.labels is not None
        assert batch.ref_labels is not None
        if batch.labels.ndim == 2:
            raise InputError('random triplets need one label per sample: use triplets_per_anchor="all"')
        sorted_labels, order = torch.sort(batch.ref_labels, stable=True)
        start = torch.searchsorted(sorted_labels, batch.labels)  # (B,)
        size = torch.searchsorted(sorted_labels, batch.labels, right=True) - start  # (B,)
        assert self.draws is not None
        own = int(batch.is_self)
        able = ((size > own) & (size < len(order))).nonzero().squeeze(1)
        anchors = able.repeat_interleave(per_anchor)  # (T,)
        start, size = start[anchors], size[anchors]
        random = torch.from_numpy(self.draws.generator().random((2, len(anchors)))).to(size.device)  # (2, T)
        positive = (random[0] * (size - own)).long()  # (T,); random numbers are below 1
        negative = (random[1] * (len(order) - size)).long()  # (T,)
        if batch.is_self:
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            positive = positive + (positive >= rank[anchors] - start)  # step over the anchor itself
        negative = negative + size * (negative >= start)  # step over the anchor's class
        return anchors, order[start + positive], order[negative]


def _by_rank(pairs: Pairs, count: int) -> Iterator[Pairs]:
    """Each row's first pair, then each row's second, and so on."""
    rows, columns = pairs
    size = torch.bincount(rows, minlength=count)  # (rows,)
    rank = torch.arange(len(rows), device=rows.device) - (size.cumsum(0) - size)[rows]  # (P,)
    order = torch.argsort(rank, stable=True)
    sizes = torch.bincount(rank).tolist()
    return zip(torch.split(rows[order], sizes), torch.split(columns[order], sizes), strict=True)

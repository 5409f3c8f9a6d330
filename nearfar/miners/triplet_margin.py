"""Triplets by margin: https://arxiv.org/abs/1503.03832 (Schroff et al., CVPR 2015).

The negative against the positive: nearer (hard), farther by less than a margin (semi-hard), or by more (easy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nearfar.losses.checks import check_choice
from nearfar.losses.engine import Tile
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.label_batch import LabelBatch
from nearfar.miners.in_batch import InBatchMiner, IndexList, Indices, distance_rows, marked, row_minimum

TripletType = Literal["all", "hard", "semihard", "easy"]


_NO_BOUND = 4.0  # distances of unit vectors lie in [0, 2], so no gap reaches it


class _Window(NamedTuple):
    """The gap ``d(anchor, negative) - d(anchor, positive)`` of wanted triplets: above ``low``, at most ``high``."""

    low: float
    high: float


class TripletMarginMiner(InBatchMiner):
    r"""Triplets by the gap :math:`d_{in} - d_{ip}` between the distances of unit vectors.

    - "all": the gap is at most the margin, so that a triplet loss of that margin is above 0.
    - "hard": it is at most 0.
    - "semihard": it is above 0 and at most the margin.
    - "easy": it is above the margin.

    Args:
        margin: 0.2 (pytorch-metric-learning; in the paper on squared distances, from memory).
        type_of_triplets: "all" (pytorch-metric-learning), "hard", "semihard" or "easy".
        negatives: "all" gives every such triplet, as pytorch-metric-learning does: up to B x P x N of them, with P
            positives and N negatives per anchor. "hardest" gives at most one for each pair of anchor and positive: of
            the triplets of that type, the one whose negative is nearest to the anchor (the first of equally near
            ones). With "semihard" this is FaceNet's online rule, at the cost of the distances and a few passes over
            them per positive.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> (anchors, positives, negatives), int64. "all" is sorted by anchor,
        positive and negative.

    Raises:
        InputError: for an unknown option, and see ``InBatchMiner.forward``.

    Example:
        >>> import torch
        >>> from nearfar.miners import TripletMarginMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> [part.tolist() for part in TripletMarginMiner(0.6, "semihard")(x, labels)]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1]]
        >>> [part.tolist() for part in TripletMarginMiner(0.6, negatives="hardest")(x, labels)]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 1, 1]]

    Source: pytorch-metric-learning, which lists all triplets first. It expands squares, so that there a point is at a
    small distance from its copy; here at 0.
    """

    def __init__(
        self,
        margin: float = 0.2,
        type_of_triplets: TripletType = "all",
        *,
        negatives: Literal["all", "hardest"] = "all",
    ) -> None:
        super().__init__()
        self.margin = float(margin)
        self.type_of_triplets = check_choice("type_of_triplets", type_of_triplets, ("all", "hard", "semihard", "easy"))
        self.negatives = check_choice("negatives", negatives, ("all", "hardest"))

    @property
    def _window(self) -> _Window:
        return {
            "all": _Window(-_NO_BOUND, self.margin),
            "hard": _Window(-_NO_BOUND, min(self.margin, 0.0)),
            "semihard": _Window(0.0, self.margin),
            "easy": _Window(self.margin, _NO_BOUND),
        }[self.type_of_triplets]

    def find(self, batch: LabelBatch) -> Indices:
        """A block of anchors at a time."""
        found = IndexList(3, batch.embeddings.device)
        walk = _every_triplet if self.negatives == "all" else _hardest_triplets
        work: Tensor | None = None
        for first, tile in distance_rows(batch.cosine()):
            work = torch.empty_like(tile.similarity) if work is None else work
            for anchors, positives, negatives in walk(tile, self._window, work):
                found.add(anchors + first, positives, negatives)
        return found.joined()

    def extra_repr(self) -> str:
        """The settings, as ``print(miner)`` shows them."""
        return f"margin={self.margin}, type_of_triplets={self.type_of_triplets!r}, negatives={self.negatives!r}"


def _distances(tile: Tile) -> tuple[Pairs, Tensor, Tensor]:
    """Positive pairs, their distances (P,), and the distances to negatives (rows, columns), elsewhere infinite."""
    rows, columns = tile.target.positive_pairs()
    near = tile.similarity
    own = near[rows, columns]
    near[tile.target.non_negative_pairs()] = torch.inf
    return (rows, columns), own, near


def _every_triplet(tile: Tile, window: _Window, work: Tensor) -> Iterator[Indices]:
    """All triplets of a block of anchors, as many pairs of anchor and positive at a time as ``work`` has rows."""
    (rows, columns), own, near = _distances(tile)
    for part in torch.split(torch.arange(len(rows), device=rows.device), len(work)):
        gap = torch.index_select(near, 0, rows[part], out=work[: len(part)]).sub_(own[part, None])  # (part, columns)
        wanted = gap <= window.high
        if window.low > -_NO_BOUND:
            wanted &= gap > window.low
        pair, negative = marked(wanted)
        yield rows[part[pair]], columns[part[pair]], negative


def _hardest_triplets(tile: Tile, window: _Window, work: Tensor) -> Iterator[Indices]:
    """For each pair of anchor and positive the triplet with the nearest negative."""
    (rows, columns), own, near = _distances(tile)
    if window.low <= -_NO_BOUND:  # the anchor's nearest negative, whatever the positive
        nearest, negative = row_minimum(near)
        kept = nearest[rows] - own <= window.high
        yield rows[kept], columns[kept], negative[rows[kept]]
        return
    number = torch.bincount(rows, minlength=len(near))  # (rows,)
    start = number.cumsum(0) - number
    for rank in range(int(number.max())):
        some = (number > rank).nonzero().squeeze(1)
        pair, everyone = start[some] + rank, len(some) == len(near)
        gap = torch.sub(near if everyone else near[some], own[pair, None], out=work[: len(some)])
        nearest, negative = row_minimum(torch.threshold_(gap, window.low, torch.inf))
        kept = nearest <= window.high
        yield some[kept], columns[pair[kept]], negative[kept]

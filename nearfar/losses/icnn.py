"""ICNN loss: https://arxiv.org/abs/2305.09062 (Mendez-Ruiz et al., 2023).

Minus the log of a score that says how well nearest neighbours keep to their class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice
from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import Euclidean
from nearfar.losses.label_batch import LabelBatch

_INNER_EPSILON = 1e-6  # inside the square root of a distance
_EPSILON = 1e-7


class ICNNLoss(LabelLoss):
    r"""Inter- and intra-class nearest-neighbour loss (ICNN), on raw embeddings by Euclidean distance.

    With, for each origin, the distances v of its nearest targets, the score is the mean of lambda = (intra + inter) / 2
    and gamma, and the loss ``-log(score)``:

    - intra = 1 - the mean distance to same-class neighbours, relative to the nearest of another class;
    - inter = the mean distance to neighbours of other classes, relative to the largest;
    - gamma = the share of same-class neighbours among the k nearest (no gradient).

    Args:
        k: neighbours that are scored; 4 (public few-shot code), or two fewer than the targets when these are few.
        split: without ``ref_emb``, "self" compares the batch with itself (public code); "half" makes the first half of
            each class the support set and its rest the queries, and leaves single-sample classes out.
        neighbours: how many nearest targets are searched for one of another class; None for k + 1 (public code).
        drop_nearest: leave each origin's nearest target out. None does so only where it is the origin itself; the
            public code always does, which discards a genuine neighbour when origins are not targets.
        reduction: "mean" only: the score belongs to the whole set.
        path: "dense"; "streamed" is accepted and means the same. All distances are held: memory grows as (B, N).
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) -> scalar. With ``ref_emb`` (N, D) the embeddings are queries and the
        references the support set.

    Raises:
        InputError: for ``reduction="none"``, mined pairs or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import ICNNLoss
        >>> x = torch.tensor([[0., 0], [1, 0], [0, 1], [4, 0], [5, 0], [4, 1.2], [0, 6], [1, 6], [0, 7.1]])
        >>> round(ICNNLoss(k=4)(x, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])).item(), 4)
        0.5236

    Source: public few-shot code that carries the author's name; the paper's equations were not read.
    """

    paper = "https://arxiv.org/abs/2305.09062"
    capabilities = Capabilities(inputs="labels", streams=False, unreduced=False, mined_pairs=False, multi_label=False)
    citation = """@misc{mendezruiz2023susana,
    title = {SuSana Distancia is all you need: Enforcing class separability in metric learning via
        two novel distance-based loss functions for few-shot image classification},
    author = {Mendez-Ruiz, Mauricio and Gonzalez-Zapata, Jorge and Reyes-Amezcua, Ivan and Flores-Araiza, Daniel and
        Lopez-Tiro, Francisco and Mendez-Vazquez, Andres and Ochoa-Ruiz, Gilberto},
    year = {2023},
    eprint = {2305.09062},
    archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        k: int = 4,
        split: Literal["self", "half"] = "self",
        *,
        neighbours: int | None = None,
        drop_nearest: bool | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if k < 1:
            raise InputError(f"k={k!r} must be at least 1")
        if neighbours is not None and neighbours < k:
            raise InputError(f"neighbours={neighbours!r} must be at least k={k}")
        self.k = k
        self.split = check_choice("split", split, ("self", "half"))
        self.neighbours, self.drop_nearest = neighbours, drop_nearest

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        search = {"neighbours": self.neighbours, "drop_nearest": self.drop_nearest}
        return {"k": self.k, "split": self.split, **search}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Minus the log of the score."""
        assert batch.labels is not None
        assert batch.ref_labels is not None
        origins, targets = batch.embeddings, batch.ref_emb
        labels, target_labels = batch.labels, batch.ref_labels
        if batch.is_self and self.split == "half":
            support, query = halves(labels)
            origins, targets, labels, target_labels = (
                origins[query],
                targets[support],
                labels[query],
                labels[support],
            )
        is_self = batch.is_self and self.split == "self"
        drop = int(is_self if self.drop_nearest is None else self.drop_nearest)
        with torch.autocast(origins.device.type, enabled=False):
            if len(origins) == 0 or len(targets) <= drop + 1:
                return (origins.sum() + targets.sum()) * 0
            return -self._score(origins, targets, labels, target_labels, drop, is_self).log()

    def _score(
        self, origins: Tensor, targets: Tensor, labels: Tensor, target_labels: Tensor, drop: int, is_self: bool
    ) -> Tensor:
        count = len(targets)
        k = self.k if self.k + 2 < count else max(1, count - 2)
        found = min(self.neighbours or k + 1, count - drop)
        k = min(k, found)
        distances = Euclidean(_INNER_EPSILON).dense(origins, targets)  # (n, m)
        order = distances.detach()
        if is_self:  # itself first, also before an exact copy, which may be of another class
            order = order.clone().fill_diagonal_(-1.0)
        index = order.topk(found + drop, dim=1, largest=False).indices[:, drop:]  # (n, found)
        nearest = distances.gather(1, index)  # (n, found)
        same = target_labels[index] == labels[:, None]  # (n, found)
        intra = _intra(nearest, same, k)
        inter = _inter(nearest[:, :k], same[:, :k])
        gamma = same[:, :k].to(nearest.dtype).mean() if self.k + 2 < count else 1.0
        return ((intra + inter) / 2 + gamma) / 2


def _intra(distances: Tensor, same: Tensor, k: int) -> Tensor:
    """1 minus the mean distance to same-class neighbours, relative to the nearest of another class."""
    nearest_other = distances.masked_fill(same, torch.inf).amin(1, keepdim=True)  # (n, 1)
    relative = distances[:, :k] / (nearest_other + _EPSILON)  # (n, k)
    relative = relative / relative.amax(1, keepdim=True).clamp(min=1)
    mates = same[:, :k]
    number = mates.sum(1).to(relative.dtype)  # (n,); an integer plus epsilon would round to float32
    mean = relative.masked_fill(~mates, 0.0).sum(1) / (number + _EPSILON)  # (n,)
    return 1 - mean.sum() / ((number > 0).to(mean.dtype).sum() + _EPSILON)


def _inter(distances: Tensor, same: Tensor) -> Tensor:
    """Mean distance to neighbours of other classes, relative to the largest; 1 where there is none at all."""
    weights = distances.masked_fill(same, 0.0)  # (n, k)
    weights = weights / (weights.max() + _EPSILON)
    number = (~same).sum(1).to(weights.dtype)  # (n,)
    mean = weights.sum(1) / (number + _EPSILON)  # (n,)
    inter = mean.sum() / ((number > 0).to(mean.dtype).sum() + _EPSILON)
    return torch.where(same.all(), torch.ones_like(inter), inter)


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the support set, the first half of each class (rounded up), and of the queries, the rest.

    Classes with a single sample are in neither.
    """
    order = torch.argsort(labels, stable=True)
    _, index, sizes = torch.unique(labels[order], return_inverse=True, return_counts=True)
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(labels), device=labels.device) - start[index]  # position within the class
    size = sizes[index]
    in_support = rank < (size + 1) // 2
    return order[in_support & (size > 1)], order[~in_support & (size > 1)]

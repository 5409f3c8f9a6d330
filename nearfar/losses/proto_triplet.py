"""Proto-Triplet loss: https://arxiv.org/abs/2305.09062 (Mendez-Ruiz et al., 2023).

A triplet of a query, the mean of its class, and the nearest mean of another class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nearfar.losses.checks import check_choice
from nearfar.losses.class_means import class_means
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss, reduce_rows
from nearfar.losses.engine import Comparison, Euclidean, LabelTarget, RowValues, Tile
from nearfar.losses.icnn import halves
from nearfar.losses.label_batch import LabelBatch

_INNER_EPSILON = 1e-6  # inside the square root of a distance


class ProtoTripletLoss(RowLocalLabelLoss):
    r"""Triplet loss with class prototypes, on raw embeddings by Euclidean distance.

    .. math:: L_q = \bigl[d(q, \mu_{y_q}) - \min_{c \ne y_q} d(q, \mu_c) + m\bigr]_+,
        \qquad d(u, v) = \sqrt{|u - v|^2 + 10^{-6}}

    averaged over the queries that have a prototype of their class and one of another, zeros included. A prototype is
    the mean of its class's support embeddings; gradients flow through it.

    Args:
        margin: m; 0.5 (public few-shot code).
        split: where queries and support come from without ``ref_emb``. "leave_one_out" compares each sample with the
            mean of the others of its class and with the means of the other classes. "half" makes the first half of
            each class, rounded up, the support set and its rest the queries. In both a class of one sample has no
            query and serves as a negative prototype.
        reduction: "mean" or "none" (a value per embedding, 0 for those that are no query).
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) -> scalar, or (B,) with ``reduction="none"``. With ``ref_emb`` (N, D) the
        embeddings are queries and the references the support set; ``split`` does not matter then.

    Raises:
        InputError: for an unknown ``split``, mined pairs, multi-hot labels, or a shape that does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import ProtoTripletLoss
        >>> support = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> queries = torch.tensor([[0.5, 0.0], [1.2, 0.0], [0.0, 2.0]])
        >>> loss = ProtoTripletLoss()
        >>> value = loss(queries, torch.tensor([0, 0, 2]), ref_emb=support, ref_labels=torch.tensor([0, 1, 2]))
        >>> round(value.item(), 4)
        0.3

    Source: public few-shot code that carries the author's name, for episodes of queries and support; the paper's
    equations were not read. Both ways to split a plain batch are additions.
    """

    paper = "https://arxiv.org/abs/2305.09062"
    capabilities = Capabilities(inputs="labels", mined_pairs=False, multi_label=False)
    splits_rows = False  # prototypes are means over the whole batch
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
        margin: float = 0.5,
        split: Literal["leave_one_out", "half"] = "leave_one_out",
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.margin = margin
        self.split = check_choice("split", split, ("leave_one_out", "half"))

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"margin": self.margin, "split": self.split, **super().settings()}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the queries that count, or a value per embedding."""
        x, labels, leave_out = batch.embeddings, batch.labels, False
        support, support_labels = batch.ref_emb, batch.ref_labels
        assert labels is not None
        assert support_labels is not None
        query = None
        if batch.is_self and self.split == "half":
            _, query = halves(labels)
            others = torch.ones_like(labels, dtype=torch.bool).index_fill(0, query, False).nonzero().squeeze(1)
            support, support_labels = x[others], labels[others]
            x, labels = x[query], labels[query]
        elif batch.is_self:
            leave_out = True
        classes = class_means(support, support_labels, self.path)
        stretch = x.new_ones(len(x))
        if leave_out:
            # Without the sample itself its class mean is size / (size - 1) times as far away; alone, at infinity.
            size = classes.sizes[classes.slots]  # (Q,)
            stretch = size / (size - 1)
        comparison = Comparison(
            x,
            classes.means,
            LabelTarget(labels, classes.labels),
            Euclidean(_INNER_EPSILON),
            row_data={"stretch": stretch},
            column_data={"present": classes.present},
        )
        values = reduce_rows(self, comparison, self.rows, None)
        if query is None or self.reduction == "mean":
            return values
        return values.new_zeros(len(batch.embeddings)).index_copy(0, query, values)

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query, and the queries with a prototype of their own class and one of another."""
        d, present, stretch = tile.similarity, tile.column["present"], tile.row["stretch"]
        positive, negative = tile.target.positive & present, tile.target.negative & present
        counted = positive.any(1) & negative.any(1) & (stretch < torch.inf)
        # Rows that do not count get harmless numbers, since infinity has no gradient.
        stretch = stretch.masked_fill(~counted, 1.0)
        own = d.masked_fill(~positive, 0.0).sum(1).masked_fill(~counted, 1.0)  # (rows,)
        square = (own.square() - _INNER_EPSILON).relu() * stretch.square() + _INNER_EPSILON
        nearest = d.masked_fill(~negative, torch.inf).amin(1).masked_fill(~counted, 0.0)  # (rows,)
        return (square.sqrt() - nearest + self.margin).relu(), counted

"""NBC-Softmax: https://arxiv.org/abs/2212.08184 (Kulatilleke et al., 2022).

Pushes the mean embeddings of the classes in a batch apart, beside a classification loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice, check_class_labels
from nearfar.losses.class_means import class_means
from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import Comparison, LabelTarget, RowValues, Tile, masked_logsumexp, row_local, softplus
from nearfar.losses.label_batch import LabelBatch, normalise
from nearfar.losses.linear_softmax import LinearSoftmaxLoss


class NBCSoftmaxLoss(LabelLoss):
    r"""Negative block contrastive softmax: a base loss plus repulsion of the class means of the batch.

    .. math::
        L = (1 - r)\, L_\text{base} + \frac{r}{C} \operatorname*{mean}_{c \in V}
            \log \Bigl(1 + \sum_{c' \in V,\, c' \ne c} e^{\tau \cos(\mu_c, \mu_{c'})}\Bigr)

    where V are the classes of the batch and mu their raw mean embeddings, through which the gradient flows. Note that
    tau multiplies.

    Args:
        num_classes: total number of classes C.
        embedding_size: dimension D of the embeddings, for the default base loss.
        base: any label loss, or None for a linear softmax classifier over the C classes (paper). It needs
            ``gather_across_devices=True`` where this loss has it.
        tau: factor of the cosines; 0.2 (published commands).
        weight: the share r of the block term; 0.5 (published commands).
        normalise_by: "num_classes" divides the block term by C (published; tiny when C is large), "none" does not.
        reduction: "mean" only: class means belong to no single sample.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) in [0, C) -> scalar.

    Raises:
        InputError: for ``reduction="none"``, labels outside [0, C), ``indices_tuple``, ``ref_emb`` or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import NBCSoftmaxLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6], [0.0, -1.0]])
        >>> loss = NBCSoftmaxLoss(num_classes=4, embedding_size=2, weight=1.0)
        >>> round(loss(x, torch.tensor([0, 0, 1, 1, 2])).item(), 4)
        0.2603

    Source: the official implementation, without the optional projection (put a ``torch.nn.Linear`` before the loss)
    and without the 1e-10 that guards its logarithm of a sum that is never below 1.
    """

    paper = "https://arxiv.org/abs/2212.08184"
    capabilities = Capabilities(
        inputs="labels", unreduced=False, reference_set=False, mined_pairs=False, multi_label=False
    )
    splits_rows = True  # for the base; the block term is the same on all processes
    citation = """@misc{kulatilleke2022nbc,
    title = {NBC-Softmax: Darkweb Author fingerprinting and migration tracking},
    author = {Kulatilleke, Gayan K. and Chandra, Shekhar S. and Portmann, Marius},
    year = {2022},
    eprint = {2212.08184},
    archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        base: nn.Module | None = None,
        tau: float = 0.2,
        weight: float = 0.5,
        normalise_by: Literal["num_classes", "none"] = "num_classes",
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if not 0 <= weight <= 1:
            raise InputError(f"weight={weight!r} is the share of the block term; it lies in [0, 1]")
        if base is None:
            base = LinearSoftmaxLoss(
                num_classes, embedding_size, path=path, gather_across_devices=gather_across_devices
            )
        if gather_across_devices and not getattr(base, "gather_across_devices", False):
            raise InputError(
                f"gather_across_devices=True needs a base that gathers as well; make {type(base).__name__} with it"
            )
        self.base = base
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.tau, self.weight = tau, weight
        self.normalise_by = check_choice("normalise_by", normalise_by, ("num_classes", "none"))

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        size = {"num_classes": self.num_classes, "embedding_size": self.embedding_size}
        return {**size, "tau": self.tau, "weight": self.weight, "normalise_by": self.normalise_by}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Base loss and block term."""
        whole = batch.whole()
        labels = check_class_labels(whole.labels, self.num_classes)
        classes = class_means(whole.embeddings, labels, self.path)
        means, slots = normalise(classes.means), torch.arange(len(classes.means), device=labels.device)  # (V, D)
        present = {"present": classes.present}
        target = LabelTarget(slots, slots, self_column=0)
        comparison = Comparison(means, means, target, row_data=present, column_data=present)
        total, count = row_local(comparison, self.rows, path=self.path)
        divisor = self.num_classes if self.normalise_by == "num_classes" else 1
        repulsion = total / count.clamp(min=1) / divisor
        base: Tensor = self.base(batch.embeddings, batch.labels)
        return (1 - self.weight) * base + self.weight * repulsion

    def rows(self, tile: Tile) -> RowValues:
        """Block term per class: its own exponent is 0, hence the 1 inside softplus."""
        rivals = tile.target.negative & tile.column["present"]  # (rows, columns)
        return softplus(masked_logsumexp(self.tau * tile.similarity, rivals)), tile.row["present"]

"""Softmax cross-entropy over a linear layer: the classifier that other losses add to.

The logits of a large number of classes are streamed, never held.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.checks import check_class_labels, weights_for
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss
from nearfar.losses.engine import Comparison, LabelTarget, RowGradient, RowValues, Tile, masked_logsumexp, softplus
from nearfar.losses.label_batch import LabelBatch


class LinearSoftmaxLoss(RowLocalLabelLoss):
    r"""Cross-entropy of ``x W^T + b``, the plain softmax classifier.

    .. math:: L_i = \log\Bigl(1 + \sum_{c \ne y_i} e^{z_{ic} - z_{i y_i}}\Bigr), \qquad z = x W^\top + b

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which are used as they are, without normalisation.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C, D), initialised as ``torch.nn.Linear`` does.
        bias: (C,).

    Shape:
        embeddings (B, D), labels (B,) in [0, C) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for labels outside [0, C), ``indices_tuple``, ``ref_emb`` or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import LinearSoftmaxLoss
        >>> loss = LinearSoftmaxLoss(num_classes=3, embedding_size=2)
        >>> loss(torch.eye(2), torch.tensor([0, 2])).shape
        torch.Size([])
    """

    paper = ""
    closed_form_names = ("bias",)
    capabilities = Capabilities(inputs="labels", reference_set=False, mined_pairs=False, multi_label=False)

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if num_classes < 1 or embedding_size < 1:
            raise InputError(f"num_classes={num_classes} and embedding_size={embedding_size} must be at least 1")
        layer = nn.Linear(embedding_size, num_classes)
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.weight, self.bias = layer.weight, layer.bias

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        own = {"num_classes": self.num_classes, "embedding_size": self.embedding_size}
        return {**own, **super().settings()}

    def compare(self, batch: LabelBatch) -> Comparison:
        """Embeddings with class weights."""
        labels = check_class_labels(batch.labels, self.num_classes)
        classes = torch.arange(self.num_classes, device=labels.device)
        weight = weights_for(batch.embeddings, self.weight)
        target = LabelTarget(labels, classes)
        return Comparison(batch.embeddings, weight, target, column_data={"bias": self.bias})

    def rows(self, tile: Tile) -> RowValues:
        """Cross-entropy per sample; every sample counts."""
        logits = tile.similarity + tile.column["bias"]  # (rows, columns)
        own = logits.masked_fill(~tile.target.positive, 0.0).sum(1)  # (rows,)
        value = softplus(masked_logsumexp(logits, tile.target.negative) - own)
        return value, torch.ones_like(value, dtype=torch.bool)

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form, with the gradient of the bias."""
        pairs = tile.target.positive_pairs()
        push = tile.similarity + tile.column["bias"]  # (rows, columns)
        own = push[pairs]  # (rows,)
        push[pairs] = -torch.inf
        peak = push.amax(1, keepdim=True).clamp_(min=-1e30)  # finite even with a single class
        push.sub_(peak).exp_()
        push_sum = push.sum(1)  # (rows,)
        gap = push_sum.log() + peak.squeeze(1) - own
        slope = gap.sigmoid()
        gradient = push.mul_((slope / push_sum.clamp(min=1e-38))[:, None])  # (rows, columns)
        gradient[pairs] = -slope
        return softplus(gap), torch.ones_like(gap, dtype=torch.bool), gradient, {"bias": gradient.sum(0)}

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Class scores (B, C)."""
        return nn.functional.linear(embeddings, self.weight, self.bias)

"""What margin heads share: class weights, cosines with them, and class sampling.

A head is a softmax over cosines in which a sample's own class is handicapped by a margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from nearfar.errors import InputError
from nearfar.losses.checks import check_class_labels, check_matrix, check_positive, weights_for
from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import ClassStatistics, Logit, class_statistics, softplus
from nearfar.losses.engine.distributed import Shard
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.label_batch import LabelBatch, gathered, normalise
from nearfar.losses.partial_fc import ClassSampler, take_classes


class ClassHead(LabelLoss):
    """Base of the margin heads. A subclass says what the logit of the own class is, in ``own_logits``.

    Labels lie in [0, C); a label of -1 leaves its sample out. In evaluation mode (``loss.eval()``) there is no
    margin and no class sampling. A batch narrower than ``embedding_size`` uses the first dimensions of the weights.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings.
        scale: multiplies the cosines.
        sample_rate: Partial FC (https://arxiv.org/abs/2203.15565): below 1, each training step sees only this share
            of the classes: those of the batch and others at random. The softmax is not corrected for it.
        seed: of all random draws of this loss, which are a part of its state.
        sparse_gradient: in training give ``weight`` a sparse COO gradient of the sampled rows, as
            ``torch.nn.Embedding(sparse=True)`` does: a step, that of the optimiser included, then costs as much as its
            sample, however many classes there are. For ``SGD`` without weight decay, ``SparseAdam`` and ``Adagrad``;
            clipping by norm and averaging over processes do not know such gradients.
        reduction: "mean" over the samples with a class, or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.
    """

    capabilities = Capabilities(inputs="labels", reference_set=False, mined_pairs=False, multi_label=False)
    splits_rows = True
    #: Rows of ``weight`` per class.
    sub_centers = 1
    #: Standard deviation of the weights' normal initialisation. Only their direction enters the loss.
    initial_std: ClassVar[float] = 0.01

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        scale: float,
        *,
        sample_rate: float = 1.0,
        seed: int = 0,
        sparse_gradient: bool = False,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if num_classes < 1 or embedding_size < 1:
            raise InputError(f"num_classes={num_classes} and embedding_size={embedding_size} must be at least 1")
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.scale = check_positive("scale", scale)
        self.sample_rate, self.seed = sample_rate, seed
        self.sampler = None if sample_rate == 1 else ClassSampler(num_classes, sample_rate, seed)
        if sparse_gradient and (self.sampler is None or gather_across_devices):
            raise InputError(
                "sparse_gradient=True is for a sample of the classes on one process: it needs sample_rate below 1 and "
                f"no gather_across_devices, not sample_rate={sample_rate!r} and "
                f"gather_across_devices={gather_across_devices!r}"
            )
        self.sparse_gradient = sparse_gradient
        self.weight = nn.Parameter(torch.empty(num_classes * self.sub_centers, embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.normal_(self.weight, std=self.initial_std)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        size = {"num_classes": self.num_classes, "embedding_size": self.embedding_size}
        sparse = {"sparse_gradient": True} if self.sparse_gradient else {}
        sampling = {"sample_rate": self.sample_rate, "seed": self.seed, **sparse}
        return {**size, **self.own_settings(), **sampling, **super().settings()}

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"scale": self.scale}

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes in training, scale included.

        Args:
            cosine: with the own class, (B,); may exceed 1 by rounding.
            embeddings: as they came, (B, D).
            known: False for samples whose label is -1, (B,).
        """
        raise NotImplementedError

    def other_logits(self) -> Logit | None:
        """What makes logits of the cosines with other classes in training; None for ``scale * cosine``."""
        return None

    def current_scale(self) -> float | Tensor:
        """What multiplies the cosines."""
        return self.scale

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Class scores ``scale * cosine`` without a margin, (B, C), in float32 or better.

        Raises:
            InputError: when the embeddings are not (B, D).
        """
        check_matrix("embeddings", embeddings)
        weight = weights_for(embeddings, self.weight)
        with full_precision(embeddings.device):
            rows, columns = normalise(embeddings), normalise(weight)
            dtype = torch.promote_types(rows.dtype, columns.dtype)
            cosine = rows.to(dtype) @ columns.to(dtype).T  # (B, C * sub_centers)
            by_class = cosine.view(len(cosine), self.num_classes, self.sub_centers)
            logits: Tensor = self.current_scale() * by_class.amax(2)  # (B, C)
            return logits

    def compute(self, batch: LabelBatch) -> Tensor:
        """Cross-entropy, as the mean over the samples with a class or one by one."""
        weights_for(batch.embeddings, self.weight)  # only checks: the engine cuts the weights without a copy
        labels = check_class_labels(batch.labels, self.num_classes, ignored=-1)
        known = labels >= 0
        with full_precision(batch.embeddings.device):
            values = self._values(batch.embeddings, labels, known, batch.rows).masked_fill(~known, 0.0)
            return values if self.reduction == "none" else self.average(values.sum(), known.sum())

    def _values(self, embeddings: Tensor, labels: Tensor, known: Tensor, shard: Shard | None) -> Tensor:
        rows, logit = normalise(embeddings), self.other_logits() if self.training else None
        if logit is not None:
            cosine, rivals = self._statistics(rows, labels, logit, shard)
            return softplus(rivals - self._own_logits(cosine, embeddings, known, shard))
        # Scaling the rows instead of the logits saves a pass over them, and finds the gradient of a learned scale.
        scale = self.current_scale()
        own, rivals = self._statistics(scale * rows, labels, None, shard)
        if self.training:
            own = self._own_logits(own / scale, embeddings, known, shard)
        return softplus(rivals - own)

    def _own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor, shard: Shard | None) -> Tensor:
        if shard is None:
            return self.own_logits(cosine, embeddings, known)
        # Margins may be drawn, ranked or measured over the batch: every process finds all of them.
        everyones = self.own_logits(shard.gather(cosine), shard.gather(embeddings), shard.gather(known))
        return everyones[shard.own]

    def _statistics(self, rows: Tensor, labels: Tensor, logit: Logit | None, shard: Shard | None) -> ClassStatistics:
        weight: Tensor = self.weight
        if self.sampler is not None and self.training:
            classes = self.sampler(gathered(labels, shard))
            weight, labels = take_classes(weight, labels, classes, self.sub_centers, self.sparse_gradient)
        return class_statistics(rows, weight, labels, logit=logit, sub_centers=self.sub_centers, path=self.path)


class PMLWeights(ClassHead):
    """A head that pytorch-metric-learning has as well."""

    initial_std = 1.0  # as there

    def load_pml_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the weights of the same loss of pytorch-metric-learning.

        Args:
            state: its ``state_dict()``, which holds ``W`` of shape (embedding_size, num_classes).

        Returns:
            This loss.

        Raises:
            InputError: when ``W`` is missing or its shape does not fit.

        Example:
            >>> import torch
            >>> from nearfar.losses import CosFaceLoss
            >>> loss = CosFaceLoss(num_classes=3, embedding_size=2)
            >>> loss.load_pml_state_dict({"W": torch.ones(2, 3)}).weight.shape
            torch.Size([3, 2])
        """
        if "W" not in state:
            raise InputError(
                f"the state holds {sorted(state)}; pytorch-metric-learning's {type(self).__name__} has 'W'"
            )
        weight, expected = state["W"].T, tuple(self.weight.shape)
        if tuple(weight.shape) != expected:
            raise InputError(f"W has shape {tuple(state['W'].shape)}; this loss needs {expected[::-1]}")
        with torch.no_grad():
            self.weight.copy_(weight)
        return self


def add_angle(cosine: Tensor, angle: Tensor | float) -> Tensor:
    """``cos(arccos(cosine) + angle)``, with the true gradient except at cosine +-1, where that is infinite.

    There the sine is held constant, so the gradient is ``cos(angle)``.

    Args:
        cosine: any shape, in [-1, 1] up to rounding.
        angle: radians, broadcastable to ``cosine``.
    """
    angle = torch.as_tensor(angle, dtype=cosine.dtype, device=cosine.device)
    square = 1 - cosine.square()
    # Below a few units of rounding the sine is noise, and its reciprocal, the gradient, would be as well.
    regular = square > 4 * torch.finfo(cosine.dtype).eps
    sine = torch.where(regular, square.where(regular, torch.ones_like(square)).sqrt(), 0.0)
    constant = square.detach().clamp(min=0).sqrt().masked_fill(regular, 0.0)
    return cosine * angle.cos() - (sine + constant) * angle.sin()


def check_radians(name: str, value: float) -> float:
    """A margin in radians or cosine: a finite number in [0, pi]."""
    if not 0 <= value <= math.pi:
        hint = f"; for {value:g} degrees give {math.radians(value):.4f}" if 0 < value <= 180 else ""
        raise InputError(f"{name}={value!r} must lie in [0, pi]: it is in radians or cosine, not in degrees{hint}")
    return float(value)

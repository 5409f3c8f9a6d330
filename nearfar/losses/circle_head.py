"""Circle loss at class level: https://arxiv.org/abs/2002.10857 (Sun et al., CVPR 2020).

The pair-wise form compares samples with each other; this one compares them with class weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.losses.circle import CircleLoss
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.engine import Logit, Space
from nearfar.losses.heads import ClassHead, check_radians


class CircleHeadLoss(ClassHead):
    r"""Circle loss of samples and class weights.

    .. math::
        L_i = -\log \frac{e^{z_{i y_i}}}{\sum_c e^{z_{ic}}}, \qquad
        z_{i y_i} = \gamma [1 + m - s_{i y_i}]_+ (s_{i y_i} - 1 + m), \qquad
        z_{ic} = \gamma [s_{ic} + m]_+ (s_{ic} - m)

    where s is the cosine and the factors in brackets are constants of the step (no gradient). In evaluation mode the
    logits are :math:`\gamma s`.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which may have any length.
        m: relaxation of the margin, in cosine; 0.25 (paper's faces, from memory; repeated in pytorch-metric-learning's
            documentation).
        gamma: scale; 256 (same source). The loss is large by construction, so it wants a low learning rate.
        sample_rate: Partial FC: the share of classes that a training step sees; 1 (all).
        seed: of the class sampling.
        sparse_gradient: with ``sample_rate``: give the weights a row-sparse gradient; see ``ClassHead``. False.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C, D), drawn from N(0, 0.01).

    Shape:
        embeddings (B, D), labels (B,) in [0, C), or -1 to leave a sample out -> scalar, or (B,) with
        ``reduction="none"``.

    Raises:
        InputError: for ``m`` outside [0, pi], ``gamma`` not above 0, labels outside [-1, C), ``indices_tuple``,
            ``ref_emb`` or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import CircleHeadLoss
        >>> loss = CircleHeadLoss(num_classes=3, embedding_size=2, gamma=2)
        >>> loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.2379

    Source: the form of fast-reid.
    """

    paper = CircleLoss.paper
    citation = CircleLoss.citation

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        m: float = 0.25,
        gamma: float = 256,
        *,
        sample_rate: float = 1.0,
        seed: int = 0,
        sparse_gradient: bool = False,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            gamma,
            sample_rate=sample_rate,
            seed=seed,
            sparse_gradient=sparse_gradient,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        self.m = check_radians("m", m)

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"m": self.m, "gamma": self.scale}

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes."""
        return self.scale * (1 + self.m - cosine.detach()).relu() * (cosine - (1 - self.m))

    def other_logits(self) -> Logit:
        """Logits of the other classes."""
        return _Push(self.m, self.scale)


@dataclass(frozen=True)
class _Push:
    """``gamma [s + m]_+ (s - m)``, whose factor in brackets has no gradient."""

    m: float
    gamma: float

    def logits(self, similarity: Tensor) -> Tensor:
        """Logits, under autograd."""
        weight = self.gamma * (similarity.detach() + self.m).relu()
        return weight * (similarity - self.m)

    def logits_and_slope(self, similarity: Tensor, want_slope: bool, space: Space) -> tuple[Tensor, Tensor | None]:
        """The same as ``gamma (max(s, -m)^2 - m^2)``, in fewer passes, and the factor in brackets if wanted."""
        bounded = torch.clamp(similarity, min=-self.m, out=space("bounded", similarity))  # (B, classes)
        least = similarity.new_tensor(-self.gamma * self.m**2)
        logits = torch.addcmul(least, bounded, bounded, value=self.gamma, out=space("logits", similarity))
        return logits, bounded.add_(self.m).mul_(self.gamma) if want_slope else None

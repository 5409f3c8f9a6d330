"""Normalised softmax: https://arxiv.org/abs/1704.06369 (NormFace, Wang et al., ACM MM 2017).

A softmax over cosines with class weights, without a margin; also https://arxiv.org/abs/1811.12649 (Zhai & Wu, 2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.heads import PMLWeights


class NormalizedSoftmaxLoss(PMLWeights):
    r"""Cross-entropy over cosines with class weights.

    .. math:: L_i = -\log \frac{e^{\cos \theta_{i y_i} / T}}{\sum_c e^{\cos \theta_{ic} / T}}

    With unit vectors the loss cannot fall below :math:`\log(1 + (C - 1) e^{-C / (T (C - 1))})`, so the temperature
    matters. NormFace learns its reciprocal, the scale (there from 10, with a floor of 0.01).

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which may have any length.
        temperature: divides the cosines; 0.05 (pytorch-metric-learning; Zhai & Wu).
        learned_scale: learn the scale, from ``1 / temperature``; False. Its logarithm is the parameter, so it stays
            above 0. Keep weight decay off it.
        sample_rate: Partial FC: the share of classes that a training step sees; 1 (all).
        seed: of the class sampling.
        sparse_gradient: with ``sample_rate``: give the weights a row-sparse gradient; see ``ClassHead``. False.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C, D), drawn from N(0, 1) as there.
        log_scale: scalar parameter, or None without ``learned_scale``.

    Shape:
        embeddings (B, D), labels (B,) in [0, C), or -1 to leave a sample out -> scalar, or (B,) with
        ``reduction="none"``.

    Raises:
        InputError: for a temperature not above 0, labels outside [-1, C), ``indices_tuple``, ``ref_emb`` or multi-hot
            labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import NormalizedSoftmaxLoss
        >>> loss = NormalizedSoftmaxLoss(num_classes=3, embedding_size=2)
        >>> _ = loss.load_pml_state_dict({"W": torch.tensor([[1.0, 0.0, -0.6], [0.0, 1.0, -0.8]])})
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.0045

    Source: pytorch-metric-learning 2.9, equal in value and gradient. The learned scale follows NormFace, with the
    logarithm in place of its floor.
    """

    paper = "https://arxiv.org/abs/1704.06369"
    citation = """@inproceedings{wang2017normface,
    title = {NormFace: L2 Hypersphere Embedding for Face Verification},
    author = {Wang, Feng and Xiang, Xiang and Cheng, Jian and Yuille, Alan L.},
    booktitle = {ACM Multimedia},
    year = {2017}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        temperature: float = 0.05,
        *,
        learned_scale: bool = False,
        sample_rate: float = 1.0,
        seed: int = 0,
        sparse_gradient: bool = False,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        self.temperature = check_positive("temperature", temperature)
        super().__init__(
            num_classes,
            embedding_size,
            1 / self.temperature,
            sample_rate=sample_rate,
            seed=seed,
            sparse_gradient=sparse_gradient,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        start = torch.tensor(math.log(self.scale))
        self.log_scale = nn.Parameter(start) if learned_scale else None

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"temperature": self.temperature, "learned_scale": self.log_scale is not None}

    def current_scale(self) -> float | Tensor:
        """The reciprocal of the temperature, learned or fixed."""
        return self.scale if self.log_scale is None else self.log_scale.exp()

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes: no margin."""
        return self.current_scale() * cosine

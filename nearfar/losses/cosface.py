"""CosFace: https://arxiv.org/abs/1801.09414 (Wang et al., CVPR 2018).

Takes a margin off the cosine between a sample and its class.
"""

from __future__ import annotations

from torch import Tensor

from nearfar.losses.contract import Path, Reduction
from nearfar.losses.heads import PMLWeights, check_radians


class CosFaceLoss(PMLWeights):
    r"""CosFace: an additive margin on the cosine between a sample and its class.

    .. math::
        L_i = -\log \frac{e^{s (\cos \theta_{i y_i} - m)}}{e^{s (\cos \theta_{i y_i} - m)} + \sum_{c \ne y_i} e^{s
        \cos \theta_{ic}}}

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which may have any length.
        margin: in cosine; 0.35 (pytorch-metric-learning).
        scale: multiplies the cosines; 64 (same source).
        sample_rate: Partial FC: the share of classes that a training step sees; 1 (all).
        seed: of the class sampling.
        sparse_gradient: with ``sample_rate``: give the weights a row-sparse gradient; see ``ClassHead``. False.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C, D), drawn from N(0, 1) as there.

    Shape:
        embeddings (B, D), labels (B,) in [0, C), or -1 to leave a sample out -> scalar, or (B,) with
        ``reduction="none"``.

    Raises:
        InputError: for a margin outside [0, pi], labels outside [-1, C), ``indices_tuple``, ``ref_emb`` or multi-hot
            labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import CosFaceLoss
        >>> loss = CosFaceLoss(num_classes=3, embedding_size=2, margin=0.4, scale=8)
        >>> _ = loss.load_pml_state_dict({"W": torch.tensor([[1.0, 0.0, -0.6], [0.0, 1.0, -0.8]])})
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.2522

    Source: pytorch-metric-learning 2.9, equal in value and gradient.
    """

    paper = "https://arxiv.org/abs/1801.09414"
    citation = """@inproceedings{wang2018cosface,
    title = {CosFace: Large Margin Cosine Loss for Deep Face Recognition},
    author = {Wang, Hao and Wang, Yitong and Zhou, Zheng and Ji, Xing and Gong, Dihong and Zhou, Jingchao and
        Li, Zhifeng and Liu, Wei},
    booktitle = {CVPR},
    year = {2018}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64,
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
            scale,
            sample_rate=sample_rate,
            seed=seed,
            sparse_gradient=sparse_gradient,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        self.margin = check_radians("margin", margin)

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"margin": self.margin, "scale": self.scale}

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes with the margin."""
        return self.scale * (cosine - self.margin)

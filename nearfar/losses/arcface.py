"""ArcFace: https://arxiv.org/abs/1801.07698 (Deng et al., CVPR 2019).

Adds an angle between a sample and its class. Margins here are in degrees, as in pytorch-metric-learning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.heads import PMLWeights, add_angle


class ArcFaceLoss(PMLWeights):
    r"""ArcFace: an additive margin on the angle between a sample and its class.

    .. math::
        L_i = -\log \frac{e^{s \cos(\theta_{i y_i} + m)}}{e^{s \cos(\theta_{i y_i} + m)} + \sum_{c \ne y_i} e^{s
        \cos \theta_{ic}}}

    with the margin m in radians here and in **degrees** in the constructor, as pytorch-metric-learning has it; all
    other margins of nearfar are in radians or cosine. Where the angle plus m would pass 180 degrees, the own logit is
    :math:`s (\cos\theta - m \sin m)`, which keeps falling.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which may have any length.
        margin: in degrees, in [0, 180]; 28.6 (the paper's 0.5 radians, as pytorch-metric-learning writes it).
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
        InputError: for a margin outside [0, 180], labels outside [-1, C), ``indices_tuple``, ``ref_emb`` or multi-hot
            labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import ArcFaceLoss
        >>> loss = ArcFaceLoss(num_classes=3, embedding_size=2, scale=8)
        >>> _ = loss.load_pml_state_dict({"W": torch.tensor([[1.0, 0.0, -0.6], [0.0, 1.0, -0.8]])})
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.3829

    Source: pytorch-metric-learning 2.9, equal in value and gradient, but for a finite gradient where a sample meets
    its class exactly (not a number there), and weights that keep their dtype whatever the batch has.
    """

    paper = "https://arxiv.org/abs/1801.07698"
    citation = """@inproceedings{deng2019arcface,
    title = {ArcFace: Additive Angular Margin Loss for Deep Face Recognition},
    author = {Deng, Jiankang and Guo, Jia and Xue, Niannan and Zafeiriou, Stefanos},
    booktitle = {CVPR},
    year = {2019}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
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
        if not 0 <= margin <= 180:
            raise InputError(f"margin={margin!r} is in degrees here; it lies in [0, 180]")
        self.margin = float(margin)

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"margin": self.margin, "scale": self.scale}

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes with the margin."""
        margin = math.radians(self.margin)
        # The angle passes 180 degrees where the cosine is below cos(pi - m).
        falls = cosine >= -math.cos(margin)
        return self.scale * torch.where(falls, add_angle(cosine, margin), cosine - margin * math.sin(margin))

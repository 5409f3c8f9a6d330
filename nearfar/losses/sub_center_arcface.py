"""Sub-centre ArcFace: https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123560715.pdf (Deng et al., ECCV 2020).

Gives every class several centres, so that its wrongly labelled samples gather around another one than the rest.
"""

from __future__ import annotations

from nearfar.errors import InputError
from nearfar.losses.arcface import ArcFaceLoss
from nearfar.losses.contract import Path, Reduction


class SubCenterArcFaceLoss(ArcFaceLoss):
    r"""ArcFace with several centres per class, of which the nearest counts: for classes with noisy labels.

    .. math:: \cos \theta_{ic} = \max_k \cos(x_i, w_{ck})

    and then as ``ArcFaceLoss``, with the margin in **degrees** as there.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings.
        margin: in degrees; 28.6 (pytorch-metric-learning).
        scale: multiplies the cosines; 64 (same source).
        sub_centers: centres per class K; 3 (paper, from memory; same source).
        sample_rate: as in ``ArcFaceLoss``.
        seed: as in ``ArcFaceLoss``.
        sparse_gradient: with ``sample_rate``: give the weights a row-sparse gradient; see ``ClassHead``. False.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C * K, D), the centres of a class one after the other.

    Shape:
        embeddings (B, D), labels (B,) in [0, C), or -1 to leave a sample out -> scalar, or (B,) with
        ``reduction="none"``.

    Raises:
        InputError: when ``sub_centers`` is below 1; otherwise as ``ArcFaceLoss``.

    Example:
        >>> import torch
        >>> from nearfar.losses import SubCenterArcFaceLoss
        >>> loss = SubCenterArcFaceLoss(8, 16)
        >>> loss.get_logits(torch.randn(5, 16)).shape
        torch.Size([5, 8])

    Source: pytorch-metric-learning 2.9, equal in value and gradient.
    """

    paper = "https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123560715.pdf"
    citation = """@inproceedings{deng2020subcenter,
    title = {Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces},
    author = {Deng, Jiankang and Guo, Jia and Liu, Tongliang and Gong, Mingming and Zafeiriou, Stefanos},
    booktitle = {ECCV},
    year = {2020}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64,
        sub_centers: int = 3,
        *,
        sample_rate: float = 1.0,
        seed: int = 0,
        sparse_gradient: bool = False,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if sub_centers < 1:
            raise InputError(f"sub_centers={sub_centers} must be at least 1")
        self.sub_centers = sub_centers  # the base reads it when it makes the weights
        super().__init__(
            num_classes,
            embedding_size,
            margin,
            scale,
            sample_rate=sample_rate,
            seed=seed,
            sparse_gradient=sparse_gradient,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {**super().own_settings(), "sub_centers": self.sub_centers}

"""AdaFace: https://arxiv.org/abs/2204.00964 (Kim et al., CVPR 2022).

Lets the length of an embedding, a measure of the sample's quality, decide what kind of margin it gets.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.heads import ClassHead, add_angle, check_radians

_EPSILON = 1e-3  # as in the official implementation: of cosines, angles and the deviation

_BFLOAT16_ROUNDING = 2**-8  # of each entry, and so at most of the length


class AdaFaceLoss(ClassHead):
    r"""AdaFace: a margin that depends on the length of the raw embedding.

    .. math::
        L_i = -\log \frac{e^{z_i}}{e^{z_i} + \sum_{c \ne y_i} e^{s \cos \theta_{ic}}}, \qquad
        z_i = s \bigl(\cos(\theta_{i y_i} - m q_i) - m (1 + q_i)\bigr), \qquad
        q_i = \operatorname{clip}\Bigl(h \frac{|x_i| - \mu}{\sigma + 0.001}, -1, 1\Bigr)

    with mu and sigma the moving mean and deviation of the lengths (constants of the step). A long embedding gets a
    large margin on the cosine and a negative one on the angle; a short one is treated as by ArcFace.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings. **They must be raw**, from before any normalisation: their
            length is the quality.
        margin: m, in radians and cosine; 0.4 (paper, official scripts).
        h: how strongly the length acts; 0.333 (same source).
        scale: multiplies the cosines; 64 (same source).
        ema: weight of the new batch in the moving mean and deviation, in [0, 1]; 0.01 (official configuration; 0
            keeps them as they are).
        sample_rate: Partial FC: the share of classes that a training step sees; 1 (all).
        seed: of the class sampling.
        sparse_gradient: with ``sample_rate``: give the weights a row-sparse gradient; see ``ClassHead``. False.
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        weight: (C, D), uniform in (-1, 1), then of unit length.
        mean: buffer, the moving mean of the lengths; starts at 20. Moves in training mode only.
        std: buffer, their moving deviation; starts at 100. A batch of one sample leaves it as it is.

    Shape:
        embeddings (B, D), labels (B,) in [0, C), or -1 to leave a sample out -> scalar, or (B,) with
        ``reduction="none"``.

    Raises:
        InputError: in training mode for embeddings of one and the same length, a margin outside [0, pi], ``ema``
            outside [0, 1], labels outside [-1, C), ``indices_tuple``, ``ref_emb`` or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import AdaFaceLoss
        >>> loss = AdaFaceLoss(num_classes=3, embedding_size=2, scale=8, ema=1)
        >>> loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
        >>> x = torch.tensor([[10.0, 0.0], [12.0, 16.0], [0.0, 30.0], [-32.0, 24.0]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.2478

    Source: the official implementation. It also clamps the cosines with other classes to +-0.999, which is left out
    here: it moves such a logit by less than 0.001 * scale and stops its gradient.
    """

    capabilities = replace(ClassHead.capabilities, needs_norms=True)
    paper = "https://arxiv.org/abs/2204.00964"
    citation = """@inproceedings{kim2022adaface,
    title = {AdaFace: Quality Adaptive Margin for Face Recognition},
    author = {Kim, Minchul and Jain, Anil K. and Liu, Xiaoming},
    booktitle = {CVPR},
    year = {2022}
}"""
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.4,
        h: float = 0.333,
        scale: float = 64,
        ema: float = 0.01,
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
        if not 0 <= ema <= 1:
            raise InputError(f"ema={ema!r} is the weight of the new batch; it lies in [0, 1]")
        self.margin, self.h, self.ema = check_radians("margin", margin), h, ema
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))
        self._lengths_checked = False

    def reset_parameters(self) -> None:
        """Draw new weights."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.div_(torch.linalg.vector_norm(self.weight, dim=1, keepdim=True))

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        return {"margin": self.margin, "h": self.h, "scale": self.scale, "ema": self.ema}

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes with their margins. Moves the mean and deviation of the lengths."""
        quality = self._quality(embeddings.detach(), known).to(cosine)  # (B,)
        cosine = cosine.clamp(-1 + _EPSILON, 1 - _EPSILON)
        shift = -self.margin * quality
        angle = cosine.detach().arccos() + shift
        moved = add_angle(cosine, shift)
        moved = moved.where(angle > _EPSILON, math.cos(_EPSILON))
        moved = moved.where(angle < math.pi - _EPSILON, -math.cos(_EPSILON))
        return self.scale * (moved - self.margin * (1 + quality))

    @torch.no_grad()
    def _quality(self, embeddings: Tensor, known: Tensor) -> Tensor:
        raw = torch.linalg.vector_norm(embeddings.to(self.mean.dtype), dim=1)  # (B,)
        self._check_lengths(raw, embeddings)
        lengths = raw.clamp(0.001, 100)
        count = known.sum()
        mean = lengths.masked_fill(~known, 0.0).sum() / count.clamp(min=1)
        deviations = (lengths - mean).square().masked_fill(~known, 0.0)
        std = (deviations.sum() / (count - 1).clamp(min=1)).sqrt()
        # One sample has no deviation, and none has no mean either: then the moving values stay.
        self.mean += self.ema * (count >= 1).to(mean) * (mean - self.mean)
        self.std += self.ema * (count >= 2).to(std) * (std - self.std)
        quality: Tensor = self.h * (lengths - self.mean) / (self.std + _EPSILON)
        return quality.clamp(-1, 1)

    def _check_lengths(self, lengths: Tensor, embeddings: Tensor) -> None:
        # Reading values of a tensor on an accelerator makes a step wait for it: there, the first batch must do.
        seen = lengths.device.type != "cpu" and self._lengths_checked
        if len(lengths) < 2 or seen or torch.compiler.is_compiling():
            return
        self._lengths_checked = True
        low, high = lengths.min().item(), lengths.max().item()
        unit = high - 1 < _BFLOAT16_ROUNDING and 1 - low < _BFLOAT16_ROUNDING
        if unit or (high - low <= 1e-6 * high and bool((embeddings != embeddings[0]).any())):
            raise InputError(
                f"all {len(lengths)} embeddings have length {high:.4g}; AdaFaceLoss reads a sample's quality from the "
                "length, so give it raw features, from before the final Normalize"
            )

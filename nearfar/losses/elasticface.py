"""ElasticFace: https://arxiv.org/abs/2109.09416 (Boutros et al., CVPR Workshops 2022).

Draws the margin anew for every sample and step, so that no single value has to fit all classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.draws import SeededDraws
from nearfar.losses.heads import ClassHead, add_angle, check_radians

_MARGIN = {"arc": 0.5, "cos": 0.35}
_SIGMA = {("arc", False): 0.05, ("arc", True): 0.0175, ("cos", False): 0.05, ("cos", True): 0.02}


class ElasticFaceLoss(ClassHead):
    r"""ElasticFace: ArcFace or CosFace with margins drawn from a normal distribution.

    .. math::
        L_i = -\log \frac{e^{z_i}}{e^{z_i} + \sum_{c \ne y_i} e^{s \cos \theta_{ic}}}, \qquad
        z_i = s \cos(\theta_{i y_i} + m_i) \text{ ("arc")}, \quad s (\cos \theta_{i y_i} - m_i) \text{ ("cos")},
        \qquad m_i \sim N(m, \sigma^2)

    With ``plus`` the margins of a batch are handed out by rank: the sample nearest to its class gets the smallest.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings, which may have any length.
        variant: "arc" for a margin on the angle, in radians, "cos" for one on the cosine.
        margin: mean margin; None for 0.5 ("arc") or 0.35 ("cos") (official configuration).
        sigma: standard deviation of the margins; None for 0.05, with ``plus`` 0.0175 ("arc") or 0.02 ("cos") (same
            source; the paper, from memory, has 0.025 for the last).
        scale: multiplies the cosines; 64 (same source).
        plus: hand the margins out by rank (ElasticFace+); False.
        published_ranks: with ``plus``, index the sorted margins as the published code does, which takes the order of
            the samples for their ranks and often gives the nearest sample a large margin; False.
        sample_rate: Partial FC: the share of classes that a training step sees; 1 (all).
        seed: of the margins and the class sampling.
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
        InputError: for another variant, a margin outside [0, pi], a negative sigma, labels outside [-1, C),
            ``indices_tuple``, ``ref_emb`` or multi-hot labels.

    Example:
        >>> import torch
        >>> from nearfar.losses import ElasticFaceLoss
        >>> loss = ElasticFaceLoss(num_classes=3, embedding_size=2, variant="cos", sigma=0, margin=0.4, scale=8)
        >>> loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(loss(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        1.2522

    Source: the official implementation, but for the intended rule of ``plus``, which it misses. Like there, an angle
    plus its margin may pass pi. The rule itself is from memory of the paper.
    """

    paper = "https://arxiv.org/abs/2109.09416"
    citation = """@inproceedings{boutros2022elasticface,
    title = {ElasticFace: Elastic Margin Loss for Deep Face Recognition},
    author = {Boutros, Fadi and Damer, Naser and Kirchbuchner, Florian and Kuijper, Arjan},
    booktitle = {CVPR Workshops},
    year = {2022}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        variant: Literal["arc", "cos"] = "arc",
        margin: float | None = None,
        sigma: float | None = None,
        scale: float = 64,
        plus: bool = False,
        *,
        published_ranks: bool = False,
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
        self.variant = check_choice("variant", variant, ("arc", "cos"))
        self.margin = check_radians("margin", _MARGIN[variant] if margin is None else margin)
        self.sigma = float(_SIGMA[variant, bool(plus)] if sigma is None else sigma)
        if not 0 <= self.sigma < float("inf"):
            raise InputError(f"sigma={sigma!r} is a standard deviation; it must be 0 or more")
        self.plus, self.published_ranks = plus, published_ranks
        self.draws = SeededDraws(seed)

    def own_settings(self) -> dict[str, object]:
        """The options that the base does not know."""
        margins = {"variant": self.variant, "margin": self.margin, "sigma": self.sigma, "scale": self.scale}
        return {**margins, "plus": self.plus, "published_ranks": self.published_ranks}

    def draw_margins(self, count: int) -> Tensor:
        """The next margins, (count,), in float64."""
        return torch.from_numpy(self.draws.generator().normal(self.margin, self.sigma, count))

    def own_logits(self, cosine: Tensor, embeddings: Tensor, known: Tensor) -> Tensor:
        """Logits of the own classes with their margins."""
        margins = self.draw_margins(len(cosine)).to(cosine)
        if self.plus:
            margins = _by_rank(margins, cosine.detach(), known, self.published_ranks)
        moved = add_angle(cosine, margins) if self.variant == "arc" else cosine - margins
        return self.scale * moved


def _by_rank(margins: Tensor, cosine: Tensor, known: Tensor, published: bool = False) -> Tensor:
    """The margins (B,) in the order of the cosines: the largest cosine gets the smallest margin."""
    # Samples without a class come last on both sides, so the others share the others' margins.
    nearest_first = cosine.masked_fill(~known, -torch.inf).argsort(descending=True, stable=True)
    ascending = margins.masked_fill(~known, torch.inf).sort().values
    if published:
        ascending = ascending[nearest_first]
    else:
        ascending = torch.empty_like(margins).scatter_(0, nearest_first, ascending)
    # A sample without a class has no margin at all, and so a finite logit.
    return ascending.masked_fill(~known | ascending.isinf(), 0.0)

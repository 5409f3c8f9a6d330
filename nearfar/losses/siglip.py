"""SigLIP: https://arxiv.org/abs/2303.15343 (Zhai et al., ICCV 2023).

Every pair of a query and a document is a yes-or-no question of its own.
"""

from __future__ import annotations

from nearfar.losses.contract import Path, Reduction
from nearfar.losses.pairwise_sigmoid import PairwiseSigmoidLoss


class SigLIPLoss(PairwiseSigmoidLoss):
    r"""Sigmoid loss with a learned scale t and a learned bias b.

    .. math::
        L_i = -\sum_j \log \sigma\bigl(y_{ij} (t \cos_{ij} + b)\bigr), \qquad t = e^{t'}, \quad
        y_{ij} = 1 \text{ for positives, } -1 \text{ for negatives}

    summed over documents and averaged over queries. Streamed in the chunked form: all pairs as negatives, minus the
    logits of the positives. A grade g between 0 and 1 mixes both answers, :math:`g \log\sigma(l) + (1-g)
    \log\sigma(-l)`; the paper has no grades.

    Args:
        temperature: initial 1 / t, instead of ``scale``.
        scale: initial t; 10 (paper, from memory; confirmed by the demo notebooks of the official code).
        bias: initial b; -10 (same source), made for very large batches. For less than about a thousand documents
            ``log(p / (1 - p))`` with ``p = 1 / documents`` starts nearer to the right imbalance.
        false_negative_margin: see ``QueryDocumentLoss``; None (off).
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        log_scale: t', a scalar parameter. Leave it and ``bias`` out of weight decay; freeze it with
            ``loss.log_scale.requires_grad_(False)``.
        bias: b, a scalar parameter.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for both ``temperature`` and ``scale``, grades outside [0, 1], or misfitting shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import SigLIPLoss
        >>> queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> documents = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
        >>> round(SigLIPLoss()(queries, documents).item(), 4)
        2.3835

    Source: the official implementation (big_vision) and open_clip's. Embeddings are normalised without the 1e-8 that
    the former adds to their length.
    """

    paper = "https://arxiv.org/abs/2303.15343"
    citation = """@inproceedings{zhai2023sigmoid,
    title = {Sigmoid Loss for Language Image Pre-Training},
    author = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
    booktitle = {ICCV},
    year = {2023}
}"""

    def __init__(
        self,
        temperature: float | None = None,
        *,
        scale: float | None = None,
        bias: float = -10.0,
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if temperature is None and scale is None:
            scale = 10
        super().__init__(
            temperature,
            scale,
            bias=bias,
            learn_scale=True,
            largest_scale=None,
            normalise="rows",
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        self.initial_bias = bias

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"bias": self.initial_bias, **super().settings()}

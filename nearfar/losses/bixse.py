"""BiXSE: https://arxiv.org/abs/2508.06781 (Tsirigotis et al., COLM 2025).

Binary cross-entropy of every query with every document of the batch, with graded relevance as the target.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.contract import Path, Reduction
from nearfar.losses.engine import Comparison, Sum, Tile, statistics
from nearfar.losses.engine.distributed import process_count, sum_over_processes
from nearfar.losses.pairwise_sigmoid import Normalise, PairwiseSigmoidLoss

_LARGEST_SCALE = 100.0


class BiXSELoss(PairwiseSigmoidLoss):
    r"""Binary cross-entropy with graded targets z and a learned bias b.

    .. math::
        e_{ij} = \operatorname{softplus}(l_{ij}) - z_{ij} l_{ij}, \qquad l_{ij} = \text{scale} \cdot \cos_{ij} + b

    Other queries' documents have z = 0 unless ``relevance`` says otherwise. A hard document of grade 0.25 is not
    pushed to 0 but to the score whose sigmoid is 0.25. The minimum is the entropy of the targets, not 0.

    Graded hard documents are further columns: append their embeddings to ``documents`` and their grades to
    ``relevance``. Every query then sees all of them; for own ones only, ``mask`` the others'.

    Args:
        scale: multiplies the cosine; 20.
        temperature: divides the cosine, instead of ``scale``.
        bias: initial b, or "auto": at the first batch in training mode it becomes ``log(p / (1 - p)) - scale * c``,
            where p is the mean target and c the mean cosine of the negatives, so that training does not begin by
            pushing everything down (or, in evaluation mode before that, this value is used without being kept). When
            torch.distributed runs, p and c are those of all processes. The bias never changes a ranking.
        normalise: "rows" sums over documents and averages over queries; "pairs" averages over all pairs that count,
            which makes the gradient of a pair shrink with the number of documents. With ``reduction="none"`` "pairs"
            gives each query's mean.
        learn_scale: learn the logarithm of the scale as well, bounded to scales from 1 to 100.
        false_negative_margin: see ``QueryDocumentLoss``; None (off).
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        bias: b, a scalar parameter. Leave it and ``log_scale`` out of weight decay.
        log_scale: a scalar parameter, or None without ``learn_scale``.
        bias_initialised: a boolean buffer, saved with the state.

    Shape:
        queries (B, D), documents (N, D), relevance (B, N) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: for both ``temperature`` and ``scale``, grades outside [0, 1], or misfitting shapes.

    Example:
        >>> import torch
        >>> from nearfar.losses import BiXSELoss
        >>> queries, documents = torch.eye(3), torch.eye(3)
        >>> loss = BiXSELoss(bias=-10.0)
        >>> round(loss(queries, documents, torch.diag(torch.tensor([1.0, 0.75, 0.5]))).item(), 4)
        2.5001

    Source: certain from the paper are binary cross-entropy, graded relevance as probabilities, in-batch negatives and
    that one labelled document per query suffices. No official code was found. The scale of 20 and the mean over pairs
    are those of one independent implementation, whose bias starts at 0. "rows" is SigLIP's normalisation. The
    automatic bias, the bounds of the scale and the default normalisation are ours.
    """

    paper = "https://arxiv.org/abs/2508.06781"
    citation = """@inproceedings{tsirigotis2025bixse,
    title = {{BiXSE}: Improving Dense Retrieval via Probabilistic Graded Relevance Distillation},
    author = {Tsirigotis, Christos and Adlakha, Vaibhav and Monteiro, Joao and Courville, Aaron and
        Taslakian, Perouz},
    booktitle = {COLM},
    year = {2025}
}"""

    bias_initialised: Tensor

    def __init__(
        self,
        scale: float | None = None,
        *,
        temperature: float | None = None,
        bias: float | Literal["auto"] = "auto",
        normalise: Normalise = "rows",
        learn_scale: bool = False,
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        if temperature is None and scale is None:
            scale = 20
        if isinstance(bias, str) and bias != "auto":
            raise InputError(f"bias={bias!r} must be a number or 'auto'")
        super().__init__(
            temperature,
            scale,
            bias=0.0 if bias == "auto" else bias,
            learn_scale=learn_scale,
            largest_scale=_LARGEST_SCALE if learn_scale else None,
            normalise=normalise,
            false_negative_margin=false_negative_margin,
            reduction=reduction,
            path=path,
            gather_across_devices=gather_across_devices,
        )
        if learn_scale and not 1 <= self.scale <= _LARGEST_SCALE:
            raise InputError(f"scale={self.scale:g} must lie in [1, {_LARGEST_SCALE:g}] to be learned")
        self.initial_bias = bias
        self.register_buffer("bias_initialised", torch.tensor(bias != "auto"))
        # Reading the buffer waits for an accelerator, so it is read only as long as this is set.
        self._bias_may_be_missing = bias == "auto"

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        own = {"bias": self.initial_bias, "normalise": self.normalise, "learn_scale": self.log_scale is not None}
        return {**own, **super().settings()}

    def operands(self, comparison: Comparison) -> dict[str, Tensor]:
        """Bias, and log-scale where it is learned."""
        found = super().operands(comparison)
        if not self._bias_may_be_missing:
            return found
        if self.bias_initialised:
            self._bias_may_be_missing = False
            return found
        bias = self._balanced_bias(comparison)
        if bias is None:
            return found
        if not self.training:
            return {**found, "bias": bias.to(self.bias.dtype)}
        with torch.no_grad():
            self.bias.copy_(bias)
            self.bias_initialised.fill_(True)
        self._bias_may_be_missing = False
        return found

    @torch.no_grad()
    def _balanced_bias(self, comparison: Comparison) -> Tensor | None:
        """The bias under which the mean probability is the mean target; None without a single pair."""
        kinds = {name: Sum("all", differentiable=False) for name in ("target", "cosine", "negatives", "pairs")}

        def tile(block: Tile) -> dict[str, Tensor]:
            positive, negative = block.target.positive, self.negatives(block)
            s = block.similarity
            grades = block.target.relevance(s.dtype).masked_fill(~positive, 0.0)
            return {
                "target": grades.sum(),
                "cosine": s.masked_fill(~negative, 0.0).sum(),
                "negatives": negative.sum().to(s.dtype),
                "pairs": (positive | negative).sum().to(s.dtype),
            }

        found = statistics(comparison, kinds, tile, whole_rows=self._masks_by_score)
        sums = torch.stack([found[name].double() for name in kinds])
        if comparison.shard is None and process_count() > 1:
            sums = sum_over_processes(sums)
        target, cosine, negatives, pairs = sums
        if pairs == 0:
            return None
        # Half a pair away from certainty: a batch may be all positive, or without a positive.
        rate = (target / pairs).clamp(0.5 / pairs, 1 - 0.5 / pairs)
        scale = self.scale if self.log_scale is None else math.exp(self.log_scale.item())
        bias: Tensor = rate.logit() - scale * cosine / negatives.clamp(min=1)
        return bias

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._bias_may_be_missing = True

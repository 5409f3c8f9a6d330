"""SupCon: https://arxiv.org/abs/2004.11362 (Khosla et al., NeurIPS 2020).

Each positive against everything the anchor is compared with, its other positives included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nearfar.losses.checks import check_positive
from nearfar.losses.contract import Capabilities, Path, Reduction, RowLocalLabelLoss, reduce_rows
from nearfar.losses.engine import Comparison, RowGradient, RowValues, Tile, masked_logsumexp, segment_sum
from nearfar.losses.engine.distributed import max_over_processes
from nearfar.losses.label_batch import LabelBatch


class SupConLoss(RowLocalLabelLoss):
    r"""Supervised contrastive loss on labels, under pytorch-metric-learning's name and defaults.

    .. math::
        L_i = \log \sum_{a \in P_i \cup N_i} e^{s_{ia} / \tau} - \frac1{|P_i|} \sum_{p \in P_i} s_{ip} / \tau

    averaged over the anchors with a positive and at least one more candidate: those whose loss is above 0, as
    pytorch-metric-learning's ``AvgNonZeroReducer`` does, but decided without rounding. A batch without any negative
    pair has loss 0, as there.

    Args:
        temperature: divides the cosine; 0.1 (paper, from memory; pytorch-metric-learning).
        reduction: "mean" or "none".
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar, or (B,) with ``reduction="none"``.

    Raises:
        InputError: when ``temperature`` is not above 0, or a shape does not fit.

    Example:
        >>> import torch
        >>> from nearfar.losses import SupConLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> round(SupConLoss(temperature=1)(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.8021

    Source: pytorch-metric-learning (the paper's "out" form). A sample mined as positive and as negative of the same
    anchor is refused there; here it is one candidate, and positive.
    """

    paper = "https://arxiv.org/abs/2004.11362"
    capabilities = Capabilities(inputs="labels", synthesis=True)
    citation = """@inproceedings{khosla2020supervised,
    title = {Supervised Contrastive Learning},
    author = {Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and
        Isola, Phillip and Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
    booktitle = {NeurIPS},
    year = {2020}
}"""

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        self.temperature = check_positive("temperature", temperature)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {"temperature": self.temperature, **super().settings()}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the anchors that count, or a value per anchor; 0 where nothing is negative."""
        comparison = self.compare_all(batch)
        values = reduce_rows(self, comparison, self.rows, self.rows_with_gradient)
        return values * _any_negative(comparison, self.path)

    def rows(self, tile: Tile) -> RowValues:
        """Loss per anchor, and the anchors with a positive and one more candidate."""
        logits, positive = tile.similarity / self.temperature, tile.target.positive
        candidate = positive | tile.target.negative  # (rows, columns)
        number = positive.sum(1)  # (rows,)
        mean = logits.masked_fill(~positive, 0.0).sum(1) / number.clamp(min=1)
        counted = (number > 0) & (candidate.sum(1) > 1)
        # A row without candidates has log-sum-exp -inf and does not count.
        return (masked_logsumexp(logits, candidate) - mean).masked_fill(~counted, 0.0), counted

    def rows_with_gradient(self, tile: Tile) -> RowGradient:  # type: ignore[override]
        """The same in closed form: a softmax over the candidates, then the few positives put right."""
        s, target = tile.similarity, tile.target
        rows, columns = target.positive_pairs()
        number = torch.bincount(rows, minlength=len(s))  # (rows,)
        counted = (number > 1) | ((number > 0) & target.has_negative())

        weight = s / self.temperature  # (rows, columns)
        pull = weight[rows, columns]  # (P,)
        weight[target.non_negative_pairs()] = -torch.inf
        weight[rows, columns] = pull
        peak = weight.amax(1, keepdim=True).clamp_(min=-1e30)  # finite even for a row without candidates
        weight.sub_(peak).exp_()
        total = weight.sum(1)  # (rows,)
        size = number.clamp(min=1).to(s.dtype)  # (rows,); an integer times the temperature would round to float32
        values = total.log() + peak.squeeze(1) - segment_sum(pull, rows, len(s)) / size

        slope = counted.to(s.dtype) / self.temperature  # (rows,)
        gradient = weight.mul_((slope / total.clamp(min=1e-38))[:, None])  # (rows, columns)
        gradient[rows, columns] -= (slope / size)[rows]
        return values, counted, gradient


def _any_negative(comparison: Comparison, path: Path) -> Tensor | bool:
    """Whether anything is negative at all; the first tile nearly always says so."""
    if comparison.shard is not None:
        found = _any_negative(replace(comparison, shard=None), path)
        return max_over_processes(torch.as_tensor(found, dtype=torch.int64, device=comparison.rows.device))
    if path == "dense" and not comparison.is_empty:
        return comparison.target.tile(slice(None), slice(None)).negative.any()
    return any(bool(comparison.target.tile(rows, columns).negative.any()) for rows, columns in comparison.tiles())

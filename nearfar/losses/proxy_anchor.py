"""Proxy-Anchor loss: https://arxiv.org/abs/2003.13911 (Kim et al., CVPR 2020).

Each class proxy is an anchor that draws its class near and keeps all others away, the hardest most.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.checks import check_class_labels, check_positive, weights_for
from nearfar.losses.contract import Capabilities, LabelLoss, Path, Reduction
from nearfar.losses.engine import (
    Comparison,
    Dot,
    LabelTarget,
    LogSumExp,
    Tile,
    masked_logsumexp,
    segment_logsumexp,
    softplus,
    statistics,
)
from nearfar.losses.label_batch import LabelBatch, gathered, normalise
from nearfar.losses.metrix import GradedPairs


class ProxyAnchorLoss(LabelLoss):
    r"""Proxy-Anchor loss on labels, under pytorch-metric-learning's name, defaults and parameter name.

    .. math::
        L = \frac1{|C^+|} \sum_{c \in C^+} \log\Bigl(1 + \sum_{i: y_i = c} e^{-\alpha (s_{ic} - \delta)}\Bigr)
            + \frac1C \sum_c \log\Bigl(1 + \sum_{i: y_i \ne c} e^{\alpha (s_{ic} + \delta)}\Bigr)

    with s the cosine of sample i and proxy c, and C+ the classes present in the batch.

    Args:
        num_classes: number of classes C.
        embedding_size: dimension D of the embeddings.
        margin: the paper's delta, in cosine; 0.1 (paper, from memory; pytorch-metric-learning).
        alpha: scale; 32 (same sources).
        reduction: "mean" only: the loss is a mean over proxies.
        path: "streamed" or "dense".
        gather_across_devices: see ``Loss``; False.

    Attributes:
        proxies: (C, D), initialised from N(0, 2 / C) as pytorch-metric-learning does; only their directions count.
            The paper trains them with 100 times the learning rate of the encoder (from memory).

    Shape:
        embeddings (B, D), labels (B,) in [0, C) -> scalar.

    Raises:
        InputError: for labels outside [0, C), ``reduction="none"``, ``indices_tuple``, ``ref_emb`` or multi-hot
            labels. pytorch-metric-learning turns mined pairs into weights that it adds to the exponents; the paper
            knows no such thing.

    Example:
        >>> import torch
        >>> from nearfar.losses import ProxyAnchorLoss
        >>> loss = ProxyAnchorLoss(num_classes=3, embedding_size=2)
        >>> loss(torch.eye(2), torch.tensor([0, 2])).shape
        torch.Size([])

    Source: pytorch-metric-learning, whose values and gradients it has. The parameter is never cast in place.
    """

    paper = "https://arxiv.org/abs/2003.13911"
    capabilities = Capabilities(
        inputs="labels", unreduced=False, reference_set=False, mined_pairs=False, multi_label=False, mixing=True
    )
    splits_rows = True
    citation = """@inproceedings{kim2020proxy,
    title = {Proxy Anchor Loss for Deep Metric Learning},
    author = {Kim, Sungyeon and Kim, Dongwon and Cho, Minsu and Kwak, Suha},
    booktitle = {CVPR},
    year = {2020}
}"""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32,
        *,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if num_classes < 1 or embedding_size < 1:
            raise InputError(f"num_classes={num_classes} and embedding_size={embedding_size} must be at least 1")
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.margin = margin
        self.alpha = check_positive("alpha", alpha)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        size = {"num_classes": self.num_classes, "embedding_size": self.embedding_size}
        return {**size, "margin": self.margin, "alpha": self.alpha, **super().settings()}

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the proxies with samples, plus mean over all proxies."""
        labels = check_class_labels(batch.labels, self.num_classes)
        target = LabelTarget(labels, torch.arange(self.num_classes, device=labels.device))
        proxies = weights_for(batch.embeddings, self.proxies)
        comparison = Comparison(
            normalise(batch.embeddings), proxies, target, Dot(normalise_columns=True), shard=batch.rows
        )
        kinds = {"own": LogSumExp("columns"), "other": LogSumExp("columns")}
        if self.path == "dense":
            found = statistics(comparison, kinds, self.tile, "dense")
        else:
            found = statistics(comparison, kinds, self._listed, tile_gradient=self._gradient)
        present = (found["own"] > -torch.inf).sum().clamp(min=1)
        return softplus(found["own"]).sum() / present + softplus(found["other"]).sum() / self.num_classes

    def compare_for_mixing(self, batch: LabelBatch) -> Comparison:
        """The proxies of the classes in the batch as anchors, and the samples of all processes."""
        labels = gathered(check_class_labels(batch.labels, self.num_classes), batch.rows)
        samples = gathered(normalise(batch.embeddings), batch.rows)
        classes = torch.unique(labels)
        proxies = normalise(weights_for(batch.embeddings, self.proxies)[classes])
        return Comparison(proxies, samples, LabelTarget(classes, labels))

    def of_graded(self, pairs: GradedPairs) -> Tensor:
        """Both means, of the samples that are mixed for the proxies of the batch."""
        s, grades = pairs.similarity, pairs.grades  # (P,) each
        own = segment_logsumexp(grades.log() - self.alpha * (s - self.margin), pairs.anchors, pairs.anchor_count)
        other = segment_logsumexp(
            (1 - grades).log() + self.alpha * (s + self.margin), pairs.anchors, pairs.anchor_count
        )
        return softplus(own).sum() / max(1, pairs.anchor_count) + softplus(other).sum() / self.num_classes

    def tile(self, tile: Tile) -> dict[str, Tensor]:
        """Log-sum-exps per proxy: over the samples of its class, and over all others."""
        s, target = tile.similarity, tile.target
        return {
            "own": masked_logsumexp(-self.alpha * (s - self.margin), target.positive, dim=0),  # (columns,)
            "other": masked_logsumexp(self.alpha * (s + self.margin), target.negative, dim=0),  # (columns,)
        }

    def _listed(self, tile: Tile) -> dict[str, Tensor]:
        """The same with the pairs of sample and own proxy as a list."""
        s, own = tile.similarity, tile.target.positive_pairs()
        push = (s + self.margin).mul_(self.alpha)  # (rows, columns)
        push[own] = -torch.inf
        peak = push.amax(0).clamp_(min=-1e30)  # (columns,); finite even for a proxy without other samples
        other = push.sub_(peak).exp_().sum(0).log_().add_(peak)  # (columns,)
        pull = (s[own] - self.margin).mul_(-self.alpha)  # (P,)
        return {"own": segment_logsumexp(pull, own[1], s.shape[1]), "other": other}

    def _gradient(self, tile: Tile, merged: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> Tensor:
        """Each pair's share of its proxy's log-sum-exp."""
        s, own = tile.similarity, tile.target.positive_pairs()
        lse = merged["other"].clamp(min=-1e30)  # (columns,)
        gradient = (s + self.margin).mul_(self.alpha).sub_(lse).clamp_(max=0).exp_()  # (rows, columns)
        gradient.mul_(cotangents["other"] * self.alpha)
        pull = (s[own] - self.margin).mul_(-self.alpha)  # (P,)
        share = (pull - merged["own"][own[1]]).exp_()
        gradient[own] = share * cotangents["own"][own[1]] * -self.alpha
        return gradient

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Cosines with the proxies, (B, C)."""
        return normalise(embeddings) @ normalise(weights_for(embeddings, self.proxies)).T

    def load_pml_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the proxies of pytorch-metric-learning's ``ProxyAnchorLoss``.

        Args:
            state: its ``state_dict()``.

        Raises:
            InputError: when it has no proxies of this loss's shape.
        """
        proxies = state.get("proxies")
        if proxies is None or proxies.shape != self.proxies.shape:
            found = "no 'proxies'" if proxies is None else f"'proxies' of shape {tuple(proxies.shape)}"
            raise InputError(f"state has {found}; it needs 'proxies' of shape {tuple(self.proxies.shape)}")
        with torch.no_grad():
            self.proxies.copy_(proxies)

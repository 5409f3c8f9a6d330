"""The loss under Global Proxy-based Hard Mining: the wrapped one, and the same kind on the proxy embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses import ForSentenceTransformer, Loss, MultiSimilarityLoss
from nearfar.losses.combine import LoggedParts, capabilities_of
from nearfar.losses.contract import Capabilities
from nearfar.miners.proxy_columns import take_rows

if TYPE_CHECKING:
    from nearfar.miners.global_proxy import GlobalProxyMiner


class MinedLoss(Loss):
    r"""A loss that trains a proxy head and shows its miner the proxy embeddings.

    .. math::
        L = L_{rank}(x) + w \, L_{proxy}(z), \quad z = \frac{Ax + b}{\lVert Ax + b \rVert}

    Args:
        loss: the wrapped loss.
        miner: sees the proxy embeddings of every training batch.
        embedding_size: length of the embeddings x; may be None where the miner has no head.
    """

    def __init__(self, loss: nn.Module, miner: GlobalProxyMiner, embedding_size: int | None) -> None:
        super().__init__()
        self.loss = loss
        self.embedding_size = embedding_size
        self.head: nn.Linear | None = None
        self.proxy_loss: nn.Module | None = None
        # Not a child: the miner is no module, and its state is saved by itself.
        self.miner = miner
        if miner.proxy_dim is None:
            return
        if embedding_size is None:
            raise InputError(
                "the proxy head needs to know the length of the embeddings: wrap(loss, embedding_size=...)"
            )
        self.head = nn.Linear(embedding_size, miner.proxy_dim)
        self.proxy_loss = _proxy_loss(loss) if miner.proxy_loss is None else miner.proxy_loss

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Those of the wrapped loss."""
        return capabilities_of(self.loss)

    @property
    def paper(self) -> str:  # type: ignore[override]
        """The wrapped loss's paper and that of the mining."""
        return ", ".join(filter(None, [getattr(self.loss, "paper", ""), "https://arxiv.org/abs/2302.14217"]))

    @property
    def citation(self) -> str:  # type: ignore[override]
        """BibTeX of both."""
        return "\n\n".join(filter(None, [getattr(self.loss, "citation", ""), _CITATION]))

    def settings(self) -> dict[str, object]:
        """The wrapped loss and its settings, and the miner's."""
        own = self.loss.settings() if isinstance(self.loss, Loss) else {}
        return {"loss": type(self.loss).__name__, **own, "miner": self.miner.settings()}

    def forward(self, embeddings: Tensor, labels: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The loss of a batch of a loop of one's own; the arguments are those of the wrapped loss."""
        value: Tensor = self.loss(embeddings, labels, *arguments, **options)
        proxies = self.proxies(embeddings)
        if self.proxy_loss is not None:
            value = value + self.miner.proxy_weight * self.proxy_loss(proxies, labels, *arguments, **options)
        if self.training and torch.is_grad_enabled():
            self.miner.update(proxies, labels)
        return value

    def from_columns(
        self, evaluate: Callable[[nn.Module, list[Tensor]], Tensor], columns: list[Tensor]
    ) -> tuple[LoggedParts, list[Tensor]]:
        """The parts of the loss of a batch in columns (B, D), and the proxy embeddings by column.

        Args:
            evaluate: the value of a loss on columns of embeddings.
            columns: the embeddings.
        """
        proxies = [self.proxies(column) for column in columns]
        parts = LoggedParts({"embedding_loss": evaluate(self.loss, columns)})
        if self.proxy_loss is not None:
            parts["proxy_loss"] = self.miner.proxy_weight * evaluate(self.proxy_loss, proxies)
        return parts, proxies

    def proxies(self, embeddings: Tensor) -> Tensor:
        """Proxy embeddings (B, proxy_dim) of unit length; without a head the embeddings (B, D) so, detached."""
        if self.head is None:
            return F.normalize(embeddings.detach().float(), dim=1)
        if self.miner.detach_proxy_input:
            embeddings = embeddings.detach()
        # A Matryoshka wrapper shortens the embeddings: the first dimensions of the head go with them.
        weight = self.head.weight[:, : embeddings.shape[1]]
        return F.normalize(F.linear(embeddings.to(weight.dtype), weight, self.head.bias).float(), dim=1)


class MinedSentenceLoss(ForSentenceTransformer):
    """``ForSentenceTransformer`` for a mined loss: it takes the row numbers out of the batch."""

    loss: MinedLoss

    def __init__(self, model: nn.Module, loss: MinedLoss, mini_batch_size: int | None = None) -> None:
        super().__init__(model, loss, mini_batch_size)
        self._rows: Tensor | None = None

    @property
    def miner(self) -> GlobalProxyMiner:
        """Who sees the embeddings."""
        return self.loss.miner

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | LoggedParts:
        """As without mining. Where the data has no label, the miner's classes say which rows belong together."""
        features = [dict(column) for column in sentence_features]
        self._rows = take_rows(features)
        if self._rows is None and self.training and torch.is_grad_enabled():
            raise InputError("the batch has no row numbers: call miner.attach(trainer), which adds and collates them")
        if labels is None and self._rows is not None:
            labels = self.miner.classes_of(self._rows).to(self._rows.device)
        return super().forward(features, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor | LoggedParts:
        """The loss from one embedding matrix (B, D) per column; the miner counts queries and documents."""
        parts, proxies = self.loss.from_columns(lambda loss, columns: self.evaluate(loss, columns, labels), embeddings)
        is_whole = embeddings[0].shape[1] == self.loss.embedding_size  # a Matryoshka wrapper also asks for parts
        if self._rows is not None and self.training and is_whole:
            classes = self.miner.classes_of(self._rows)
            for column in proxies[:2]:  # later columns are negatives, of no class
                self.miner.count(column, classes)
        return parts


def _proxy_loss(loss: nn.Module) -> nn.Module:
    """The same kind of loss; class weights have the length of the embeddings, so such losses get the paper's."""
    if any(hasattr(module, "num_classes") for module in loss.modules()):
        gather = bool(getattr(loss, "gather_across_devices", False))
        return MultiSimilarityLoss(1, 50, 0, mining_margin=0.1, gather_across_devices=gather)
    return copy.deepcopy(loss)


_CITATION = """@inproceedings{alibey2022global,
    title = {Global Proxy-based Hard Mining for Visual Place Recognition},
    author = {Ali-bey, Amar and Chaib-draa, Brahim and Gigu{\\`e}re, Philippe},
    booktitle = {BMVC},
    year = {2022}
}"""

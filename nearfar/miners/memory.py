"""Cross-batch memory: https://arxiv.org/abs/1912.06798 (Wang et al., CVPR 2020).

Encoders drift slowly, so the embeddings of the last batches still serve as references for this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses import LabelLoss, Loss, TripletMarginLoss, WeightedSum
from nearfar.losses.engine import LabelTarget, MultiHotTarget, Target
from nearfar.losses.engine.distributed import Shard, process_count, shards
from nearfar.losses.label_batch import LabelBatch, check_label_batch, gathered
from nearfar.miners.in_batch import InBatchMiner, Indices, marked


class EmbeddingMemory(nn.Module):
    """A loss on a batch that also compares it with the embeddings of the batches before.

    The references of the loss are the remembered samples, oldest first, then the batch itself. Remembered embeddings
    are constants; between the samples of the batch gradients flow both ways, as without a memory. A sample's pair
    with itself is left out, without any list of pairs for losses of nearfar.

    Under several processes all remember the batches of all, in the order of the ranks, so that the memory is the same
    everywhere; batches may differ in size. A loss with ``gather_across_devices=True`` stays the exact loss of the
    shared batch; any other compares a process's own batch with the shared memory.

    Only training fills the memory: in evaluation mode (``memory.eval()``) it is read and left as it is. Samples whose
    embeddings are not finite, as an overflow in half precision leaves them, are not remembered.

    Args:
        loss: a label loss of nearfar or a ``WeightedSum`` of such, or a module that is called as
            ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``; the latter gets all pairs as indices.
            A loss that needs whole classes and takes no pairs (``ICNNLoss``, ``ProtoTripletLoss``) gets the remembered
            samples alone as its support set.
        size: number of samples that the batch is compared with, its own included, as in pytorch-metric-learning.
        warm_up: for so many steps the memory fills, while the loss is that of the batch alone; 0. The paper waits
            until the embeddings drift slowly (1000 steps, from memory).
        miner: picks the pairs or triplets among all references, for example ``MultiSimilarityMiner()``; None for all
            pairs.

    Attributes:
        embeddings: buffer, the remembered embeddings (n, D), oldest first, float32 or better.
        labels: buffer, their labels (n,) or (n, L).
        steps: buffer, number of training steps so far. All three are the whole state: a resumed run goes on exactly.

    Shape:
        embeddings (B, D), labels (B,) or (B, L) -> scalar. Labels must mean the same in every batch.

    Raises:
        InputError: for a loss that has no reference set or no scalar, a batch larger than ``size``, or embeddings or
            labels of another shape than the remembered ones.

    Example:
        >>> import torch
        >>> from nearfar.losses import ContrastiveLoss
        >>> from nearfar.miners import EmbeddingMemory
        >>> memory = EmbeddingMemory(ContrastiveLoss(), size=8)
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> round(memory(x, torch.tensor([0, 1])).item(), 4)
        0.1056
        >>> round(memory(x.flip(0), torch.tensor([0, 1])).item(), 4)
        1.4472
        >>> memory.embeddings.shape
        torch.Size([4, 2])

    Source: the values are those of pytorch-metric-learning's ``CrossBatchMemory``. There the batch meets a detached
    copy of itself, so that its own pairs have half the gradient; all pairs are listed; processes differ in the order
    of their memories; and a checkpoint does not say how much of the memory is filled.
    """

    embeddings: Tensor
    labels: Tensor
    steps: Tensor
    #: Whoever keeps the buffers of processes alike can pass these over: all remember the batches of all.
    shares_batch = True
    #: Labels that are made up for one batch would match samples of others.
    needs_lasting_labels = True

    def __init__(self, loss: nn.Module, size: int, *, warm_up: int = 0, miner: nn.Module | None = None) -> None:
        super().__init__()
        _check_loss(loss)
        if size < 1 or warm_up < 0:
            raise InputError(f"size={size!r} must be at least 1, and warm_up={warm_up!r} 0 or more")
        self.loss, self.miner = loss, miner
        self.size, self.warm_up = size, warm_up
        self.register_buffer("embeddings", torch.empty(0, 0))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Forget everything."""
        self.embeddings, self.labels = self.embeddings.new_empty(0, 0), self.labels.new_empty(0, dtype=torch.int64)
        self.steps = torch.zeros_like(self.steps)

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Sequence[Tensor] | None = None) -> Tensor:
        """The loss of the batch with the memory; in training the batch is remembered afterwards.

        Args:
            embeddings: (B, D), any scale unless the loss says otherwise.
            labels: integers (B,), or multi-hot (B, L).
            indices_tuple: pairs or triplets mined in this batch. Of its own pairs only these count then; those with
                the memory all do, and are listed: 16 bytes for each. Not together with a ``miner``.
        """
        batch = check_label_batch(embeddings, labels, indices_tuple, None, None)
        if indices_tuple is not None and self.miner is not None:
            raise InputError("indices_tuple is given, and the memory has a miner of its own; use one of them")
        shard = self._shard(batch)
        self._check_fit(batch, shard)
        older = self._older(len(embeddings) if shard is None or not self._shares_batch else shard.total)
        if older == 0 or int(self.steps) < self.warm_up:
            value = self._of_the_batch_alone(embeddings, labels, indices_tuple)
        else:
            value = self._with_memory(batch, older, shard if self._shares_batch else None)
        if self.training:
            self._remember(batch, shard)
        return value

    # The loss

    @property
    def _shares_batch(self) -> bool:
        return any(isinstance(part, Loss) and part.shares_batch for part in self.loss.modules())

    def _of_the_batch_alone(self, embeddings: Tensor, labels: Tensor, indices_tuple: Sequence[Tensor] | None) -> Tensor:
        if self.miner is not None:
            indices_tuple = self.miner(embeddings, labels)
        value: Tensor = self.loss(embeddings, labels, indices_tuple)
        return value

    def _with_memory(self, batch: LabelBatch, older: int, shard: Shard | None) -> Tensor:
        assert batch.labels is not None
        own = gathered(batch.embeddings, shard), gathered(batch.labels, shard)
        everything = RememberedBatch(
            batch.embeddings,
            batch.labels,
            torch.cat([self.embeddings[-older:].to(batch.embeddings.device), own[0]]),  # (older + B, D)
            torch.cat([self.labels[-older:].to(batch.labels.device), own[1].to(self.labels.dtype)]),
            is_self=False,
            pairs=None,
            rows=shard,
            older=older,
        )
        indices = self._indices(everything, batch.pairs)
        return _value(self.loss, everything, indices)

    def _indices(self, batch: RememberedBatch, pairs: tuple[Tensor, Tensor, Tensor, Tensor] | None) -> Indices | None:
        """Mined pairs among all references, or None for all pairs."""
        if isinstance(self.miner, InBatchMiner):
            return self.miner.mine(batch)
        if self.miner is not None:
            found = self.miner(batch.embeddings.detach(), batch.labels, batch.ref_emb.detach(), batch.ref_labels)
            return batch.without_itself(found)
        if pairs is None:
            return None
        a1, p, a2, n = pairs
        b1, q, b2, m = batch.pairs_with(batch.older)
        return torch.cat([b1, a1]), torch.cat([q, p + batch.own]), torch.cat([b2, a2]), torch.cat([m, n + batch.own])

    # The memory

    def _shard(self, batch: LabelBatch) -> Shard | None:
        """Who has which rows of the batch, when several processes fill the memory."""
        if process_count() == 1 or not (self.training or self._shares_batch):
            return None
        assert batch.labels is not None
        width = 0 if batch.labels.ndim == 1 else batch.labels.shape[1]
        layout = {"the number of dimensions": batch.embeddings.shape[1], "the width of multi-hot labels": width}
        return shards({"embeddings": batch.embeddings}, layout)["embeddings"]

    def _older(self, batch_size: int) -> int:
        """How many remembered samples this batch does not displace."""
        return max(0, min(len(self.embeddings), self.size - batch_size))

    def _remember(self, batch: LabelBatch, shard: Shard | None) -> None:
        assert batch.labels is not None
        with torch.no_grad():
            embeddings, labels = gathered(batch.embeddings.detach(), shard), gathered(batch.labels, shard)
            finite = torch.isfinite(embeddings).all(1)  # (B,)
            embeddings, labels = embeddings[finite], labels[finite]
            older = self._older(len(embeddings))
            if older:
                embeddings = torch.cat([self.embeddings[-older:].to(embeddings.device), embeddings])
                labels = torch.cat([self.labels[-older:].to(labels.device), labels.to(self.labels.dtype)])
            elif not len(embeddings):
                embeddings, labels = self.embeddings, self.labels
            self.embeddings, self.labels = embeddings, labels
            self.steps = self.steps + 1

    def _check_fit(self, batch: LabelBatch, shard: Shard | None) -> None:
        assert batch.labels is not None
        count = len(batch.embeddings) if shard is None else shard.total
        if count > self.size:
            raise InputError(f"the batch has {count} samples and the memory size={self.size}; make it larger")
        if not len(self.embeddings):
            return
        held = tuple(self.embeddings.shape[1:]), tuple(self.labels.shape[1:])
        new = tuple(batch.embeddings.shape[1:]), tuple(batch.labels.shape[1:])
        if held != new:
            raise InputError(
                f"the memory holds embeddings of shape (n, {held[0][0]}) and labels of shape {('n', *held[1])}; this "
                f"batch has {tuple(batch.embeddings.shape)} and {tuple(batch.labels.shape)}: use a memory for each "
                "kind of batch, or reset() it"
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("embeddings", "labels"):  # they have as many rows as were remembered
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The settings, as ``print(memory)`` shows them."""
        return f"size={self.size}, warm_up={self.warm_up}, remembered={len(self.embeddings)}"


@dataclass(frozen=True)
class RememberedBatch(LabelBatch):
    """A batch whose references are remembered samples followed by the batch itself, that of all processes.

    Attributes:
        older: number of remembered samples.
    """

    older: int = 0

    @property
    def own(self) -> int:
        """The column in which row 0 meets itself."""
        return self.older + (0 if self.rows is None else self.rows.offset)

    def target(self) -> Target:
        """Pairs by label, without those of a sample with itself."""
        assert self.labels is not None
        assert self.ref_labels is not None
        kind = LabelTarget if self.labels.ndim == 1 else MultiHotTarget
        return kind(self.labels, self.ref_labels, self.own)

    def whole(self) -> RememberedBatch:
        """The batch of all processes, on each of them."""
        assert self.labels is not None
        everyone = gathered(self.embeddings, self.rows), gathered(self.labels, self.rows)
        return replace(self, embeddings=everyone[0], labels=everyone[1], rows=None)

    def support(self) -> RememberedBatch:
        """The same with the remembered samples as the only references."""
        assert self.ref_labels is not None
        return replace(self, ref_emb=self.ref_emb[: self.older], ref_labels=self.ref_labels[: self.older])

    def pairs_with(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All positive and all negative pairs with the first ``count`` references."""
        tile = self.target().tile(slice(0, len(self.embeddings)), slice(0, count))
        return *marked(tile.positive), *marked(tile.negative)

    def without_itself(self, indices: Indices) -> Indices:
        """Mined pairs or triplets without positives that are the anchor itself."""
        kept = indices[1] != indices[0] + self.own
        if len(indices) == 3:
            return tuple(part[kept] for part in indices)
        return indices[0][kept], indices[1][kept], *indices[2:]


def _value(loss: nn.Module, batch: RememberedBatch, indices: Indices | None) -> Tensor:
    if isinstance(loss, WeightedSum):
        return loss.weigh(lambda part: _value(part, batch, indices)).total()
    if indices is None and isinstance(loss, LabelLoss):
        if not loss.capabilities.mined_pairs:
            batch = batch.support()
        return loss.compute(batch if loss.splits_rows else batch.whole())
    if indices is None:
        indices = batch.pairs_with(len(batch.ref_emb))
    value: Tensor = loss(batch.embeddings, batch.labels, indices, batch.ref_emb, batch.ref_labels)
    return value


def _check_loss(loss: nn.Module) -> None:
    name = type(loss).__name__
    if isinstance(loss, WeightedSum):
        for part in loss.parts.values():
            _check_loss(part)
        if len({getattr(part, "gather_across_devices", False) for part in loss.parts.values()}) > 1:
            raise InputError("parts of the sum differ in gather_across_devices: with a memory, all gather or none")
    elif isinstance(loss, Loss) and loss.capabilities.inputs != "labels":
        raise InputError(f"{name} compares queries with documents; the memory serves losses on labels")
    elif isinstance(loss, Loss) and not loss.capabilities.reference_set:
        raise InputError(f"{name} compares with class weights, which need no memory of other batches")
    elif getattr(loss, "reduction", "mean") != "mean":
        raise InputError(f"the memory gives a scalar: make {name} with reduction='mean'")
    elif isinstance(loss, TripletMarginLoss) and loss.triplets_per_anchor != "all":
        raise InputError('random triplets do not reach into the memory: use triplets_per_anchor="all"')

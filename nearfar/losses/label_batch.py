"""The inputs of a label loss, checked, and what is compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_matrix, check_same_width, readable
from nearfar.losses.engine import Comparison, LabelTarget, MultiHotTarget, PairTarget, Target, unit
from nearfar.losses.engine.distributed import Shard, shards

if TYPE_CHECKING:
    from nearfar.losses.hard_negative_mixing import HardNegativeMixing


@dataclass(frozen=True)
class LabelBatch:
    """Checked inputs of a label loss.

    Attributes:
        embeddings: anchors (B, D).
        labels: integers (B,) or multi-hot (B, L); None when pairs were mined.
        ref_emb: references (N, D); the embeddings themselves when no reference set was given.
        ref_labels: their labels.
        is_self: rows and columns are the same samples, so a sample's pair with itself is left out.
        pairs: mined pairs (anchors, positives, anchors, negatives), or None.
        rows: when several processes share the batch, who has which embeddings; everything above is this process's.
        columns: the same for the references.
        synthesis: makes further negatives, where the call wants them.
    """

    embeddings: Tensor
    labels: Tensor | None
    ref_emb: Tensor
    ref_labels: Tensor | None
    is_self: bool
    pairs: tuple[Tensor, Tensor, Tensor, Tensor] | None
    rows: Shard | None = None
    columns: Shard | None = None
    synthesis: HardNegativeMixing | None = None

    def target(self) -> Target:
        """What is positive, in the references of all processes."""
        first = 0 if self.columns is None else self.columns.offset
        if self.pairs is not None:
            a1, p, a2, n = self.pairs
            width = len(self.ref_emb) if self.columns is None else self.columns.total
            return PairTarget((a1, p + first), (a2, n + first), (len(self.embeddings), width))
        assert self.labels is not None
        assert self.ref_labels is not None
        kind = LabelTarget if self.labels.ndim == 1 else MultiHotTarget
        return kind(self.labels, gathered(self.ref_labels, self.columns), first if self.is_self else None)

    def cosine(self) -> Comparison:
        """Embeddings and the references of all processes by cosine similarity."""
        rows = normalise(self.embeddings)
        columns = rows if self.is_self else normalise(self.ref_emb)
        return Comparison(rows, gathered(columns, self.columns), self.target(), shard=self.rows)

    def shared(self) -> LabelBatch:
        """The same as this process's part of a batch that all share."""
        labels = self.labels if self.pairs is None else None
        references = None if self.is_self else self.ref_emb
        width = 0 if labels is None or labels.ndim == 1 else labels.shape[1]
        layout = {
            "the number of dimensions": self.embeddings.shape[1],
            "the width of multi-hot labels": width,
        }
        found = shards({"embeddings": self.embeddings, "labels": labels, "ref_emb": references}, layout)
        return replace(self, rows=found["embeddings"], columns=found["embeddings" if self.is_self else "ref_emb"])

    def whole(self) -> LabelBatch:
        """The batch of all processes, on each of them."""
        if self.rows is None or self.columns is None:
            return self
        embeddings, labels, pairs = self.rows.gather(self.embeddings), None, None
        reference, ref_labels = embeddings if self.is_self else self.columns.gather(self.ref_emb), None
        if self.pairs is None:
            assert self.labels is not None
            assert self.ref_labels is not None
            labels = gathered(self.labels, self.rows)
            ref_labels = labels if self.is_self else gathered(self.ref_labels, self.columns)
        else:
            a1, p, a2, n = self.pairs
            split = shards({"positives": p, "negatives": n})
            pairs = (
                split["positives"].gather(a1 + self.rows.offset),
                split["positives"].gather(p + self.columns.offset),
                split["negatives"].gather(a2 + self.rows.offset),
                split["negatives"].gather(n + self.columns.offset),
            )
        return LabelBatch(embeddings, labels, reference, ref_labels, self.is_self, pairs)


def check_label_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: Sequence[Tensor] | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> LabelBatch:
    """The inputs of a label loss, checked."""
    check_matrix("embeddings", embeddings)
    if labels is None and indices_tuple is None:
        raise InputError("labels is None: give a label per embedding, or mined pairs as indices_tuple")
    if ref_emb is None and ref_labels is not None:
        raise InputError("ref_labels is given without ref_emb; give both or neither")
    is_self = ref_emb is None or (ref_emb is embeddings and (ref_labels is None or ref_labels is labels))
    labels = _check_labels("labels", labels, "embeddings", embeddings)
    shape = (len(embeddings), len(embeddings if ref_emb is None else ref_emb))
    pairs = None if indices_tuple is None else _as_pairs(indices_tuple, shape, embeddings.device)
    # Raised once, so that a loss that uses the embeddings twice adds their gradients in float32.
    precise = in_full_precision(embeddings)
    if ref_emb is None or is_self:
        return LabelBatch(precise, labels, precise, labels, True, pairs)
    check_matrix("ref_emb", ref_emb)
    check_same_width("embeddings", embeddings, "ref_emb", ref_emb)
    if ref_labels is None and pairs is None:
        raise InputError("ref_labels is None: references need labels of their own")
    ref_labels = _check_labels("ref_labels", ref_labels, "ref_emb", ref_emb)
    if labels is not None and ref_labels is not None and labels.shape[1:] != ref_labels.shape[1:]:
        raise InputError(
            f"labels has shape {tuple(labels.shape)} and ref_labels {tuple(ref_labels.shape)}: "
            "both must be integers (B,), or multi-hot over the same classes"
        )
    precise_references = precise if ref_emb is embeddings else in_full_precision(ref_emb)
    return LabelBatch(precise, labels, precise_references, ref_labels, False, pairs)


def _check_labels(name: str, labels: Tensor | None, owner_name: str, owner: Tensor) -> Tensor | None:
    if labels is None:
        return None
    if labels.ndim not in (1, 2) or len(labels) != len(owner):
        raise InputError(
            f"{name} has shape {tuple(labels.shape)}; {owner_name} has {len(owner)} rows, so it needs "
            f"({len(owner)},), or ({len(owner)}, L) for multi-hot labels"
        )
    if labels.ndim == 1 and (labels.is_floating_point() or labels.is_complex()):
        raise InputError(f"{name} has dtype {labels.dtype}: class labels are integers; use labels.long()")
    labels = labels.to(owner.device)
    return labels.long() if labels.ndim == 1 else labels


def _as_pairs(
    indices: Sequence[Tensor], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if len(indices) not in (3, 4):
        raise InputError(
            f"indices_tuple has {len(indices)} tensors; it needs 3 (anchors, positives, negatives) or 4 (anchors, "
            "positives, anchors, negatives)"
        )
    first, positive, *second, negative = (part.to(device) for part in indices)
    again = second[0] if second else first
    for anchors, others in ((first, positive), (again, negative)):
        _check_indices(anchors, shape[0], others)
        _check_indices(others, shape[1], anchors)
    return first, positive, again, negative


def _check_indices(indices: Tensor, count: int, partners: Tensor) -> None:
    if indices.ndim != 1 or indices.is_floating_point() or len(indices) != len(partners):
        raise InputError(
            f"indices_tuple holds a tensor of shape {tuple(indices.shape)} and dtype {indices.dtype} beside one of "
            f"shape {tuple(partners.shape)}; anchors and their partners are integers (P,) of equal length"
        )
    if readable(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise InputError(
            f"indices_tuple runs from {int(indices.min())} to {int(indices.max())}; there are {count} rows to point at"
        )


def gathered(part: Tensor, shard: Shard | None) -> Tensor:
    """The rows of all processes where these share a batch, else those that are given."""
    return part if shard is None else shard.gather(part)


def normalise(embeddings: Tensor) -> Tensor:
    """Unit length in float32 or better; a zero vector stays zero."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return unit(in_full_precision(embeddings))


def in_full_precision(tensor: Tensor) -> Tensor:
    """Half precision raised to float32, under autograd."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

"""What every loss takes, checks and promises.

Each loss declares its capabilities. An argument that it cannot honour raises; none is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice, check_positive
from nearfar.losses.document_batch import compare_documents
from nearfar.losses.engine import Comparison, RowValues, Tile, row_local, row_values
from nearfar.losses.engine.distributed import process_count, sum_over_processes
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.row_local import RowFunction, RowGradientFunction
from nearfar.losses.hard_negative_mixing import SYNTHETIC, HardNegativeMixing, widened, widened_gradient
from nearfar.losses.label_batch import LabelBatch, check_label_batch
from nearfar.losses.metrix import GradedPairs, Metrix

Reduction = Literal["mean", "none"]
Path = Literal["streamed", "dense"]


@dataclass(frozen=True)
class Capabilities:
    """What a loss can honour.

    Attributes:
        inputs: "labels" for ``loss(embeddings, labels, ...)``, "documents" for ``loss(queries, documents, ...)``.
        streams: never holds the matrix of similarities.
        unreduced: ``reduction="none"`` gives a value per row.
        reference_set: ``ref_emb`` and ``ref_labels``.
        mined_pairs: ``indices_tuple``.
        multi_label: multi-hot labels (B, L).
        gathers: ``gather_across_devices=True`` gives the gradient of the batch of all processes.
        needs_norms: reads the length of the embeddings, which therefore must come from before any normalisation.
        mixing: ``mixing``, which needs a loss that reads graded pairs.
        synthesis: ``synthesis``, which needs a loss that takes negatives of one anchor alone.
    """

    inputs: Literal["labels", "documents"]
    streams: bool = True
    unreduced: bool = True
    reference_set: bool = True
    mined_pairs: bool = True
    multi_label: bool = True
    gathers: bool = True
    needs_norms: bool = False
    mixing: bool = False
    synthesis: bool = False


class Loss(nn.Module):
    """Base of all losses.

    Args:
        reduction: "mean" for a scalar, "none" for a value per row (0 for rows that do not count).
        path: "streamed" walks the similarities in tiles; "dense" holds the whole matrix, and can be differentiated
            twice.
        gather_across_devices: compute the loss of the batch of all processes together (of ``torch.distributed``'s
            default group). Every process returns that loss (with ``reduction="none"`` the values of its own rows), and
            the gradients, averaged over the processes as ``DistributedDataParallel`` does, are its exact gradients,
            those of the loss's own parameters included. Batches may be of unequal size or empty, but all processes
            must pass the same arguments. References and documents of the processes are put together like the batches;
            indices, ``relevance`` and ``mask`` speak of a process's own tensors. Without an initialised process group
            or with one process it changes nothing, as in sentence-transformers.
    """

    capabilities: ClassVar[Capabilities]
    #: Each process computes its own rows, and the engine sums over processes; otherwise each computes all rows.
    splits_rows: bool = False
    #: The paper, for the registry and the model card.
    paper: ClassVar[str]
    citation: ClassVar[str] = ""
    #: The parameters (and row and column data) whose gradients ``rows_with_gradient`` returns as well, by name.
    closed_form_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, *, reduction: Reduction = "mean", path: Path = "streamed", gather_across_devices: bool = False
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "none"))
        check_choice("path", path, ("streamed", "dense"))
        if reduction == "none" and not self.capabilities.unreduced:
            raise InputError(f"{type(self).__name__} has no value per row: use reduction='mean', not reduction='none'")
        if gather_across_devices and not self.capabilities.gathers:
            raise InputError(f"{type(self).__name__} cannot honour gather_across_devices=True; leave it out")
        self.reduction = reduction
        self.path = path
        self.gather_across_devices = gather_across_devices

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values, for recipes and model cards."""
        gather = {"gather_across_devices": True} if self.gather_across_devices else {}
        return {"reduction": self.reduction, **gather}

    @property
    def shares_batch(self) -> bool:
        """Whether other processes hold parts of the batch."""
        return self.gather_across_devices and process_count() > 1

    def average(self, total: Tensor, count: Tensor) -> Tensor:
        """A sum over terms, over their number; 0 without any. Of all processes where these share the batch."""
        if self.shares_batch:
            total, count = sum_over_processes(total), sum_over_processes(count)
        return total / count.clamp(min=1)

    def extra_repr(self) -> str:
        """The settings, as ``print(loss)`` shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


class LabelLoss(Loss):
    """A loss on embeddings and their labels: ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``."""

    capabilities = Capabilities(inputs="labels")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        mixing: Metrix | None = None,
        synthesis: HardNegativeMixing | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: (B, D), any scale unless the loss says otherwise.
            labels: integers (B,), or multi-hot (B, L); may be None when ``indices_tuple`` is given.
            indices_tuple: mined pairs (anchors, positives, anchors, negatives) or triplets (anchors, positives,
                negatives), indices into ``embeddings`` and ``ref_emb``. Only these pairs count, each once.
            ref_emb: references (N, D) to compare with; the batch itself when None.
            ref_labels: their labels. As in pytorch-metric-learning a sample's pair with itself is left out only when
                ``ref_emb`` is None or the very object ``embeddings``.
            mixing: adds the weighted loss of mixed examples, which are made of the pairs that count; see ``Metrix``.
            synthesis: gives each anchor further negatives, mixed of its hardest; see ``HardNegativeMixing``.

        Returns:
            A scalar; (B,) with ``reduction="none"``. Zero, connected to the graph, where nothing can be learned.

        Raises:
            InputError: for shapes that do not fit, or an argument this loss cannot honour.
        """
        self.refuse_unsupported(labels, indices_tuple, ref_emb, mixing, synthesis)
        batch = check_label_batch(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if not self.shares_batch:
            return self.compute_with(batch, mixing, synthesis)
        batch = batch.shared()
        if self.splits_rows:
            return self.compute_with(batch, mixing, synthesis)
        found = self.compute_with(batch.whole(), mixing, synthesis)
        assert batch.rows is not None
        return found[batch.rows.own] if self.reduction == "none" else found

    def compute_with(self, batch: LabelBatch, mixing: Metrix | None, synthesis: HardNegativeMixing | None) -> Tensor:
        """``compute`` with the options of a call."""
        value = self.compute(batch if synthesis is None else replace(batch, synthesis=synthesis))
        if mixing is None:
            return value
        pairs = mixing(self.compare_for_mixing(batch), self.path)
        with full_precision(value.device):
            return value + mixing.weight * self.of_graded(pairs)

    def compute(self, batch: LabelBatch) -> Tensor:
        """The loss of a checked batch: the whole, or with ``splits_rows`` this process's part of it."""
        raise NotImplementedError

    def compare_for_mixing(self, batch: LabelBatch) -> Comparison:
        """Anchors and references, of unit length, whose pairs are mixed."""
        return batch.cosine()

    def of_graded(self, pairs: GradedPairs) -> Tensor:
        """The loss of mixed pairs, reduced as that of the others."""
        raise NotImplementedError

    def refuse_unsupported(
        self,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        mixing: Metrix | None = None,
        synthesis: HardNegativeMixing | None = None,
    ) -> None:
        """Raise for an argument that this loss cannot honour."""
        able, name = self.capabilities, type(self).__name__
        if mixing is not None and not able.mixing:
            raise InputError(
                f"{name} cannot honour mixing: it is no function of one sum over positives and one over negatives; "
                "call it without"
            )
        if synthesis is not None and not able.synthesis:
            raise InputError(
                f"{name} cannot honour synthesis: it takes no negatives of one anchor alone; call it without"
            )
        if indices_tuple is not None and not able.mined_pairs:
            raise InputError(f"{name} cannot honour indices_tuple: it needs whole classes; call it without")
        if ref_emb is not None and not able.reference_set:
            raise InputError(f"{name} cannot honour ref_emb: it compares the batch with itself; call it without")
        if labels is not None and labels.ndim == 2 and not able.multi_label:
            raise InputError(f"{name} needs one label per sample: labels has shape {tuple(labels.shape)}, not (B,)")


class RowLocalLabelLoss(LabelLoss):
    """A label loss with a value per anchor, from cosine similarities unless ``compare`` says otherwise."""

    def rows(self, tile: Tile) -> RowValues:
        """Loss per anchor and which anchors count, from a tile of complete rows."""
        raise NotImplementedError

    #: ``rows`` with its gradient in closed form, where a loss has one.
    rows_with_gradient = None

    splits_rows = True

    def compare(self, batch: LabelBatch) -> Comparison:
        """What is compared with what."""
        return batch.cosine()

    def compute(self, batch: LabelBatch) -> Tensor:
        """Mean over the anchors that count, or a value per anchor."""
        return reduce_rows(self, self.compare_all(batch), self.rows, self.rows_with_gradient)

    def compare_all(self, batch: LabelBatch) -> Comparison:
        """``compare`` over all processes that share the batch, with synthetic negatives where the call wants them."""
        comparison = replace(self.compare(batch), shard=batch.rows)
        return comparison if batch.synthesis is None else batch.synthesis(comparison, self.path)

    def of_graded(self, pairs: GradedPairs) -> Tensor:
        """Mean over the anchors that count, or a value per anchor."""
        values, counted = self.graded_rows(pairs)
        values = values.masked_fill(~counted, 0.0)
        return values if self.reduction == "none" else self.average(values.sum(), counted.sum())

    def graded_rows(self, pairs: GradedPairs) -> RowValues:
        """Loss per anchor and which anchors count, boolean, from mixed pairs."""
        raise NotImplementedError


class QueryDocumentLoss(Loss):
    """A loss on queries and documents: ``loss(queries, documents, relevance, mask)``.

    Args:
        temperature: similarities are divided by it. Give this or ``scale``, not both.
        scale: similarities are multiplied by it.
        false_negative_margin: when given, a negative whose cosine exceeds that of the query's best positive minus
            this margin is ignored: it is more likely an unlabelled answer.
        reduction: see ``Loss``.
        path: see ``Loss``.
        gather_across_devices: see ``Loss``. Documents of other processes are negatives of a process's queries.
    """

    capabilities = Capabilities(inputs="documents", reference_set=False, mined_pairs=False, multi_label=False)

    def __init__(
        self,
        temperature: float | None,
        scale: float | None,
        *,
        false_negative_margin: float | None = None,
        reduction: Reduction = "mean",
        path: Path = "streamed",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, path=path, gather_across_devices=gather_across_devices)
        if (temperature is None) == (scale is None):
            raise InputError(
                f"{type(self).__name__} takes exactly one of temperature and scale, "
                f"not temperature={temperature!r} and scale={scale!r}"
            )
        factor = scale if scale is not None else 1 / check_positive("temperature", temperature or 0.0)
        self.scale = check_positive("scale", factor)
        self.false_negative_margin = false_negative_margin

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        margin = {"false_negative_margin": self.false_negative_margin}
        return {"scale": self.scale, **margin, **super().settings()}

    def forward(
        self,
        queries: Tensor,
        documents: Tensor,
        relevance: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        query_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            queries: (B, D), any scale.
            documents: (N, D); without ``relevance`` N >= B and document i answers query i.
            relevance: grades in [0, 1], dense (B, N), or sparse COO or CSR (a missing entry is 0).
            mask: pairs to ignore: dense (B, N) boolean, or sparse with non-zero entries.
            query_ids: integers (B,). Document i of a query with the same id is not counted as a negative.
            document_ids: integers (N,). A copy of a query's own document i is not counted as its negative.

        Returns:
            A scalar; (B,) with ``reduction="none"``. Zero, connected to the graph, where nothing can be learned.

        Raises:
            InputError: for shapes that do not fit, or grades outside [0, 1].
        """
        given = (queries, documents, relevance, mask, query_ids, document_ids)
        return self.compute(compare_documents(*given, shares_batch=self.shares_batch))

    def compute(self, comparison: Comparison) -> Tensor:
        """Mean over the queries that count, or a value per query."""
        return reduce_rows(self, comparison, self.rows, None if self._masks_by_score else self.rows_with_gradient)

    @property
    def _masks_by_score(self) -> bool:
        return self.false_negative_margin is not None

    def rows(self, tile: Tile) -> RowValues:
        """Loss per query and which queries count, from a tile of complete rows."""
        raise NotImplementedError

    #: ``rows`` with its gradient in closed form, where a loss has one.
    rows_with_gradient = None

    def negatives(self, tile: Tile) -> Tensor:
        """The negatives of a tile (rows, columns), without those too close to the query's best positive."""
        negative = tile.target.negative
        if self.false_negative_margin is None:
            return negative
        scores = tile.similarity.detach()
        best = scores.masked_fill(~tile.target.positive, -torch.inf).amax(1, keepdim=True)  # (rows, 1)
        # A query without a positive keeps its negatives.
        suspect = (scores > best - self.false_negative_margin) & (best > -torch.inf)
        return negative & ~suspect


def reduce_rows(
    loss: Loss, comparison: Comparison, rows: RowFunction, rows_with_gradient: RowGradientFunction | None
) -> Tensor:
    """Run a row-local loss and reduce it as the loss says."""
    names = loss.closed_form_names
    if SYNTHETIC in comparison.row_data:
        rows, names = widened(rows), (*names, SYNTHETIC)
        rows_with_gradient = None if rows_with_gradient is None else widened_gradient(rows_with_gradient)
    if loss.reduction == "none":
        values, _ = row_values(comparison, rows, loss.path)
        return values
    total, count = row_local(comparison, rows, rows_with_gradient, loss.path, names)
    return total / count.clamp(min=1)

"""nearfar's losses in sentence-transformers' own trainer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.combine import LoggedParts, WeightedSum, capabilities_of
from nearfar.losses.contract import Loss, QueryDocumentLoss
from nearfar.losses.engine.distributed import distinct_ids
from nearfar.losses.hosts.raw_embeddings import raw_embeddings


class ForSentenceTransformer(nn.Module):
    """Train a ``SentenceTransformer`` with a loss of nearfar, through ``SentenceTransformerTrainer``.

    How the columns of the data set are read:

    - *Label losses.* One text column and an integer ``label``: texts with classes. Two columns: each row is a class of
      its own, or that of its ``label``. Further columns are negatives, each a class of its own. A rectangular list
      as ``label`` is multi-hot. Losses with class weights need a ``label``, and take no negatives.
    - *Query-document losses.* First the query, then its document, then hard negatives, which every query of the batch
      sees. A ``label`` of floating-point numbers is the relevance of each row's document in [0, 1], or a list with
      one grade per document column. A ``label`` of integers says what the row asks for: documents of rows with the
      same label are not negatives of each other.
    - *A* ``WeightedSum``: each part as above. The trainer logs the parts by name (not when ``MatryoshkaLoss`` wraps
      cached embeddings, which leaves only their sum).

    A loss that reads the length of embeddings gets those from before the model's final ``Normalize``.

    Args:
        model: the model to train.
        loss: a loss of nearfar with ``reduction="mean"``, or any module that is called as
            ``loss(embeddings, labels)``.
        mini_batch_size: embed this many rows at once (GradCache, https://arxiv.org/abs/2101.06983): the gradient of a
            batch of any size, in the memory of a mini-batch and the time of one more forward pass. None (off).
            Not for static models, which need no memory to speak of.

    Raises:
        InputError: for a loss with ``reduction="none"``, columns and labels that the loss cannot use, or a
            ``mini_batch_size`` that is not at least 1 or goes with a static model.

    Example:
        >>> from nearfar.data import demo_model
        >>> from nearfar.losses import CircleLoss, ForSentenceTransformer
        >>> loss = ForSentenceTransformer(demo_model(), CircleLoss())
        >>> loss.get_config_dict()["m"]
        0.4
    """

    def __init__(self, model: nn.Module, loss: nn.Module, mini_batch_size: int | None = None) -> None:
        super().__init__()
        if getattr(loss, "reduction", "mean") != "mean":
            raise InputError(f"training needs a scalar: make {type(loss).__name__} with reduction='mean'")
        if mini_batch_size is not None:
            _check_mini_batches(model, mini_batch_size)
        # The trainer replaces the child named `model` by its distributed or compiled wrapper.
        self.model = model
        self.loss = loss
        self.mini_batch_size = mini_batch_size
        # Read by sentence-transformers' wrapper losses.
        self.uses_gradient_cache = mini_batch_size is not None

    @property
    def needs_norms(self) -> bool:
        """The loss reads the length of the embeddings."""
        return capabilities_of(self.loss).needs_norms

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | LoggedParts:
        """Embed each column and compute the loss; the parts of a ``WeightedSum`` by name."""
        from sentence_transformers.base.losses.merged_forward import embed_columns

        columns = list(sentence_features)
        if self.uses_gradient_cache:
            from nearfar.losses.hosts.gradcache import forward_cached

            return forward_cached(self, columns, labels)
        with raw_embeddings(self.model) if self.needs_norms else nullcontext():
            embeddings = embed_columns(self.model, columns)
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor | LoggedParts:
        """The loss from one embedding matrix (B, D) per column."""
        return _value(self.loss, embeddings, labels)

    @staticmethod
    def evaluate(loss: nn.Module, columns: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The value of any loss on columns of embeddings (B, D), read as this class reads them."""
        return _total(_value(loss, columns, labels))

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss from embeddings in mini-batches, by column; see sentence-transformers' ``CachedLossMixin``.

        With ``with_backward`` each mini-batch has its gradient afterwards, and ``backward`` of the returned value
        gives the loss's own parameters theirs.
        """
        value = _total(self.compute_loss_from_embeddings([torch.cat(column) for column in reps], labels))
        if not with_backward:
            return value
        from nearfar.losses.hosts.gradcache import backward_to_embeddings

        return backward_to_embeddings(value, reps, self.loss)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        settings = self.loss.settings() if isinstance(self.loss, Loss) else {}
        cached = {} if self.mini_batch_size is None else {"mini_batch_size": self.mini_batch_size}
        return {"loss": type(self.loss).__name__, **settings, **cached}

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return str(getattr(self.loss, "citation", ""))


def _check_mini_batches(model: nn.Module, size: int) -> None:
    from sentence_transformers.base.losses.gradcache import has_static_embedding_input

    if size < 1:
        raise InputError(f"mini_batch_size={size!r} must be at least 1, or None")
    if has_static_embedding_input(model):
        raise InputError(
            f"mini_batch_size={size}: the model is static (StaticEmbedding), so its inputs cannot be cut into "
            "mini-batches, and gain nothing by it; leave mini_batch_size out"
        )


def _total(value: Tensor | LoggedParts) -> Tensor:
    return value.total() if isinstance(value, LoggedParts) else value


def _value(loss: nn.Module, embeddings: list[Tensor], labels: Tensor | None) -> Tensor | LoggedParts:
    if isinstance(loss, WeightedSum):
        return loss.weigh(lambda part: _total(_value(part, embeddings, labels)))
    if isinstance(loss, QueryDocumentLoss):
        return _from_documents(loss, embeddings, labels)
    return _from_labels(loss, embeddings, labels)


def _from_labels(loss: nn.Module, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
    name, has_classes = type(loss).__name__, hasattr(loss, "num_classes")
    if labels is not None and labels.is_floating_point():
        raise InputError(
            f"{name} learns from classes; the label column holds floating-point numbers. "
            "Use integers, or a query-document loss for graded relevance"
        )
    batch = len(embeddings[0])
    if labels is None:
        if len(embeddings) < 2 or has_classes:
            or_pairs = "" if has_classes else ", or a second text column with a positive for each row"
            raise InputError(
                f"{name} has {len(embeddings)} text column(s) and no label: add an integer 'label' column{or_pairs}"
            )
        if getattr(loss, "needs_lasting_labels", False):
            raise InputError(f"{name} compares a batch with earlier ones: add an integer 'label' column to the data")
        labels = _new_classes(loss, batch, torch.tensor([-1], device=embeddings[0].device))
    columns = [labels, labels][: len(embeddings)]
    negatives = len(embeddings) - len(columns)
    if negatives:
        if labels.ndim == 2:
            raise InputError("columns of negatives have no classes to go with a multi-hot label; use two columns")
        if has_classes:
            raise InputError(
                f"columns of negatives are none of the {loss.num_classes} classes of {name}; use two columns"
            )
        columns.append(_new_classes(loss, negatives * batch, labels))
    value: Tensor = loss(torch.cat(embeddings), torch.cat(columns))
    return value


def _new_classes(loss: nn.Module, count: int, taken: Tensor) -> Tensor:
    """Labels (count,) of classes that no other sample has, in this batch or, where processes share it, in theirs."""
    if isinstance(loss, Loss) and loss.shares_batch:
        return distinct_ids(count, taken)
    return taken.max() + 1 + torch.arange(count, device=taken.device)


def _from_documents(loss: QueryDocumentLoss, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
    if len(embeddings) < 2:
        raise InputError(
            f"{type(loss).__name__} needs a query column and a document column; the data set has one text column"
        )
    queries, documents = embeddings[0], torch.cat(embeddings[1:])
    relevance, query_ids = None, None
    if labels is not None and labels.is_floating_point():
        relevance = graded_relevance(labels, len(embeddings) - 1)
    elif labels is not None:
        if labels.ndim != 1:
            raise InputError(f"integer labels have shape {tuple(labels.shape)}; they need one per row, (B,)")
        query_ids = labels
    value: Tensor = loss(queries, documents, relevance, query_ids=query_ids)
    return value


def graded_relevance(grades: Tensor, document_columns: int) -> Tensor:
    """Sparse relevance (B, columns x B) from the grades of each row's own documents.

    Args:
        grades: (B,) for the first document column, or (B, columns).
        document_columns: number of document columns.
    """
    table = grades[:, None] if grades.ndim == 1 else grades
    batch, width = table.shape
    if width not in (1, document_columns):
        raise InputError(f"label has {width} grades a row; the data set has {document_columns} document columns")
    rows = torch.arange(batch, device=grades.device)
    index = torch.stack([rows.repeat(width), torch.arange(width * batch, device=grades.device)])  # (2, columns x B)
    return torch.sparse_coo_tensor(index, table.T.flatten(), (batch, document_columns * batch), check_invariants=False)

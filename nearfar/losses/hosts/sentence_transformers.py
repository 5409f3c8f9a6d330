"""nearfar's losses in sentence-transformers' own trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.contract import Loss, QueryDocumentLoss


class ForSentenceTransformer(nn.Module):
    """Train a ``SentenceTransformer`` with a loss of nearfar, through ``SentenceTransformerTrainer``.

    How the columns of the data set are read:

    - *Label losses.* One text column and an integer ``label``: texts with classes. Two columns: each row is a class of
      its own, or that of its ``label``. Further columns are negatives, each a class of its own. A rectangular list
      as ``label`` is multi-hot.
    - *Query-document losses.* First the query, then its document, then hard negatives, which every query of the batch
      sees. A ``label`` of floating-point numbers is the relevance of each row's document in [0, 1], or a list with
      one grade per document column. A ``label`` of integers says what the row asks for: documents of rows with the
      same label are not negatives of each other.

    Args:
        model: the model to train.
        loss: a loss of nearfar with ``reduction="mean"``, or any module that is called as
            ``loss(embeddings, labels)``.

    Raises:
        InputError: for a loss with ``reduction="none"``, or columns and labels that the loss cannot use.

    Example:
        >>> from nearfar.data import demo_model
        >>> from nearfar.losses import CircleLoss, ForSentenceTransformer
        >>> loss = ForSentenceTransformer(demo_model(), CircleLoss())
        >>> loss.get_config_dict()["m"]
        0.4
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        if getattr(loss, "reduction", "mean") != "mean":
            raise InputError(f"training needs a scalar: make {type(loss).__name__} with reduction='mean'")
        # The trainer replaces the child named `model` by its distributed or compiled wrapper.
        self.model = model
        self.loss = loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Embed each column and compute the loss."""
        from sentence_transformers.base.losses.merged_forward import embed_columns

        embeddings = embed_columns(self.model, list(sentence_features))
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss from one embedding matrix (B, D) per column."""
        if isinstance(self.loss, QueryDocumentLoss):
            return self._from_documents(self.loss, embeddings, labels)
        return self._from_labels(embeddings, labels)

    def _from_labels(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        if labels is not None and labels.is_floating_point():
            raise InputError(
                f"{type(self.loss).__name__} learns from classes; the label column holds floating-point numbers. "
                "Use integers, or a query-document loss for graded relevance"
            )
        batch = len(embeddings[0])
        if labels is None:
            if len(embeddings) < 2:
                raise InputError(
                    f"{type(self.loss).__name__} has one text column and no label: add an integer 'label' column, "
                    "or a second text column with a positive for each row"
                )
            labels = torch.arange(batch, device=embeddings[0].device)
        columns = [labels, labels][: len(embeddings)]
        negatives = len(embeddings) - len(columns)
        if negatives:
            if labels.ndim == 2:
                raise InputError("columns of negatives have no classes to go with a multi-hot label; use two columns")
            fresh = labels.max() + 1 + torch.arange(negatives * batch, device=labels.device)
            columns.append(fresh)
        loss: Tensor = self.loss(torch.cat(embeddings), torch.cat(columns))
        return loss

    def _from_documents(self, loss: QueryDocumentLoss, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
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

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        settings = self.loss.settings() if isinstance(self.loss, Loss) else {}
        return {"loss": type(self.loss).__name__, **settings}

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return str(getattr(self.loss, "citation", ""))


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

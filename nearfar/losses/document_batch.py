"""The inputs of a query-document loss, checked, and what is compared with what."""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.checks import check_matrix, check_relevance, check_same_width
from nearfar.losses.engine import Comparison, LabelTarget, RelevanceTarget, Target
from nearfar.losses.engine.distributed import Shard, shards
from nearfar.losses.label_batch import gathered, normalise


def compare_documents(
    queries: Tensor,
    documents: Tensor,
    relevance: Tensor | None,
    mask: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    *,
    shares_batch: bool,
) -> Comparison:
    """Queries with documents by cosine similarity; with those of all processes where these share the batch."""
    check_matrix("queries", queries)
    check_matrix("documents", documents)
    check_same_width("queries", queries, "documents", documents)
    shape = (len(queries), len(documents))
    check_relevance(relevance, shape)
    if mask is not None and tuple(mask.shape) != shape:
        raise InputError(f"mask has shape {tuple(mask.shape)}; it needs {shape}: a row a query, a column a document")
    rows = columns = None
    if shares_batch:
        given = {"queries": queries, "documents": documents, "query_ids": query_ids, "document_ids": document_ids}
        found = shards(given, {"the number of dimensions": queries.shape[1]})
        rows, columns = found["queries"], found["documents"]
    same = _repetitions(shape, query_ids, document_ids, rows, columns)
    first, width = (0, shape[1]) if columns is None else (columns.offset, columns.total)
    target: Target
    if relevance is None and mask is None and not same:
        documents_of_queries = torch.arange(width, device=queries.device)
        target = LabelTarget(documents_of_queries[first : first + shape[0]], documents_of_queries)
    else:
        target = RelevanceTarget(relevance, (shape[0], width), queries.device, mask, same, first)
    everyones = gathered(normalise(documents), columns)
    return Comparison(normalise(queries), everyones, target, shard=rows)


def _repetitions(
    shape: tuple[int, int],
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    rows: Shard | None,
    columns: Shard | None,
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Ids of rows and columns whose equality marks a repetition inside the batch."""
    queries, documents = shape
    same = []
    if query_ids is not None:
        _check_ids("query_ids", query_ids, queries)
        # Document i belongs to query i; the documents after them belong to nobody, so their id must be new.
        everyones = gathered(query_ids, rows)
        nobody = everyones.min() - 1 if len(everyones) else query_ids.new_zeros(())
        extra = nobody.expand(max(0, documents - queries))
        same.append((query_ids, gathered(torch.cat([query_ids, extra])[:documents], columns)))
    if document_ids is not None:
        _check_ids("document_ids", document_ids, documents)
        if documents < queries:
            raise InputError(f"document_ids needs a document for each of the {queries} queries; there are {documents}")
        same.append((document_ids[:queries], gathered(document_ids, columns)))
    return tuple(same)


def _check_ids(name: str, ids: Tensor, length: int) -> None:
    if ids.shape != (length,) or ids.is_floating_point():
        raise InputError(f"{name} has shape {tuple(ids.shape)} and dtype {ids.dtype}; it needs integers ({length},)")

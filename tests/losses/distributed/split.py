"""A batch cut into the parts that several processes hold, and the one batch that these parts make."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tests.losses.inputs import DocumentInputs, Inputs, LabelInputs

KINDS = ("uneven", "one_empty")


def cut(count: int, world: int, kind: str) -> list[slice]:
    """Contiguous parts of unequal size."""
    if kind == "one_empty":
        sizes = {2: [0, count], 3: [count - count // 3, 0, count // 3]}[world]
    else:
        first = (count + 1) // 2
        sizes = {2: [count - count // 3, count // 3], 3: [first, count // 6, count - first - count // 6]}[world]
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def split(inputs: Inputs, world: int, kind: str) -> tuple[Inputs, list[Inputs]]:
    """The whole batch and its parts, without mined pairs, grades and masks across parts, which no part can name."""
    return (_split_labels if isinstance(inputs, LabelInputs) else _split_documents)(inputs, world, kind)


def _split_labels(inputs: LabelInputs, world: int, kind: str) -> tuple[Inputs, list[Inputs]]:
    rows = cut(len(inputs.embeddings), world, kind)
    shared = inputs.ref_emb is inputs.embeddings
    own_columns = rows
    if inputs.ref_emb is not None and not shared:
        own_columns = cut(len(inputs.ref_emb), world, "uneven")[::-1]
        start = 0
        for position, part in enumerate(own_columns):
            own_columns[position] = slice(start, start + part.stop - part.start)
            start = own_columns[position].stop
    parts, kept = [], []
    for row, column in zip(rows, own_columns, strict=True):
        embeddings = inputs.embeddings[row]
        part = LabelInputs(embeddings, None if inputs.labels is None else inputs.labels[row])
        if inputs.ref_emb is not None:
            ref_emb = embeddings if shared else inputs.ref_emb[column]
            part = replace(part, ref_emb=ref_emb, ref_labels=part.labels if shared else inputs.ref_labels[column])
        if inputs.indices_tuple is not None:
            inside = _inside(inputs.indices_tuple, row, column)
            kept.append(inside)
            start = _starts(len(inside), row.start, column.start)
            moved = tuple(index - first for index, first in zip(inside, start, strict=True))
            part = replace(part, indices_tuple=moved)
        parts.append(part)
    if kept:
        inputs = replace(inputs, indices_tuple=tuple(torch.cat(pieces) for pieces in zip(*kept, strict=True)))
    return inputs, parts


def _starts(length: int, row: int, column: int) -> tuple[int, ...]:
    return (row, column, column) if length == 3 else (row, column, row, column)


def _inside(indices: tuple[Tensor, ...], row: slice, column: slice) -> tuple[Tensor, ...]:
    def within(index: Tensor, part: slice) -> Tensor:
        return (index >= part.start) & (index < part.stop)

    if len(indices) == 3:
        a, p, n = indices
        keep = within(a, row) & within(p, column) & within(n, column)
        return a[keep], p[keep], n[keep]
    a1, p, a2, n = indices
    first, second = within(a1, row) & within(p, column), within(a2, row) & within(n, column)
    return a1[first], p[first], a2[second], n[second]


def _split_documents(inputs: DocumentInputs, world: int, kind: str) -> tuple[Inputs, list[Inputs]]:
    queries, documents = len(inputs.queries), len(inputs.documents)
    rows = cut(queries, world, kind)
    columns = [torch.arange(documents)[part] for part in cut(documents, world, kind)]
    if documents >= queries:  # document i stays with query i
        extra = cut(documents - queries, world, "uneven")[::-1]
        columns, start = [], queries
        for row, part in zip(rows, extra, strict=True):
            stop = start + part.stop - part.start
            columns.append(torch.cat([torch.arange(row.start, row.stop), torch.arange(start, stop)]))
            start = stop
    own = torch.zeros(queries, documents, dtype=torch.bool)
    for row, column in zip(rows, columns, strict=True):
        own[row, column] = True
    relevance, mask = (_blocks(table, own) for table in (inputs.relevance, inputs.mask))
    parts: list[Inputs] = [
        DocumentInputs(
            inputs.queries[row],
            inputs.documents[column],
            _part(inputs.relevance, relevance, row, column),
            _part(inputs.mask, mask, row, column),
            None if inputs.query_ids is None else inputs.query_ids[row],
            None if inputs.document_ids is None else inputs.document_ids[column],
        )
        for row, column in zip(rows, columns, strict=True)
    ]
    return replace(inputs, relevance=relevance, mask=mask), parts


def _blocks(table: Tensor | None, own: Tensor) -> Tensor | None:
    """Dense, and zero outside the processes' own blocks."""
    return None if table is None else table.to_dense() * own


def _part(original: Tensor | None, table: Tensor | None, row: slice, column: Tensor) -> Tensor | None:
    """A process's block, in the layout of the original."""
    if original is None or table is None:
        return None
    part = table[row][:, column]
    if original.layout == torch.sparse_csr:
        return part.to_sparse_csr()
    return part.to_sparse_coo() if original.layout == torch.sparse_coo else part

"""Explicit pairs and scalar arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def units(matrix: Tensor) -> list[Tensor]:
    """Rows of unit length; a zero row stays zero."""
    rows = []
    for row in matrix:
        square = (row * row).sum()
        rows.append(row / square.sqrt() if square > 0 else row * 0)
    return rows


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def distance(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    return ((x - y) ** 2).sum().add(epsilon).sqrt()


def log_one_plus_exp(x: Tensor) -> Tensor:
    return x + torch.log1p((-x).exp()) if x > 0 else torch.log1p(x.exp())


def log_sum_exp(terms: list[Tensor]) -> Tensor:
    peak = max(term.item() for term in terms)
    return sum((term - peak).exp() for term in terms).log() + peak


def log_one_plus_sum_exp(terms: list[Tensor]) -> Tensor:
    return log_sum_exp([*terms, terms[0].new_zeros(())]) if terms else torch.zeros(())


def mean(terms: list[Tensor]) -> Tensor:
    return sum(terms) / len(terms) if terms else torch.zeros(())


def references(inputs) -> Tensor:
    return inputs.embeddings if inputs.ref_emb is None else inputs.ref_emb


def label_pairs(inputs) -> tuple[list[list[int]], list[list[int]]]:
    """Positive and negative columns of each row."""
    rows = range(len(inputs.embeddings))
    if inputs.indices_tuple is not None:
        return _mined(inputs.indices_tuple, len(inputs.embeddings))
    is_self = inputs.ref_emb is None or inputs.ref_emb is inputs.embeddings
    column_labels = (inputs.labels if is_self else inputs.ref_labels).tolist()
    row_labels = inputs.labels.tolist()
    positives: list[list[int]] = [[] for _ in rows]
    negatives: list[list[int]] = [[] for _ in rows]
    for i in rows:
        for j in range(len(column_labels)):
            if is_self and i == j:
                continue
            (positives if _match(row_labels[i], column_labels[j]) else negatives)[i].append(j)
    return positives, negatives


def _match(first, second) -> bool:
    if isinstance(first, list):
        return any(a != 0 and b != 0 for a, b in zip(first, second, strict=True))
    return first == second


def _mined(indices, count: int) -> tuple[list[list[int]], list[list[int]]]:
    if len(indices) == 3:
        anchors, others, negative_columns = (part.tolist() for part in indices)
        negative_anchors = anchors
    else:
        anchors, others, negative_anchors, negative_columns = (part.tolist() for part in indices)
    positives = [sorted({j for a, j in zip(anchors, others, strict=True) if a == i}) for i in range(count)]
    negatives = [
        sorted({j for a, j in zip(negative_anchors, negative_columns, strict=True) if a == i}) for i in range(count)
    ]
    return positives, negatives


def document_pairs(inputs) -> tuple[list[dict[int, float]], list[list[int]]]:
    """Per query: its positives with their grades, and its negatives."""
    queries, documents = len(inputs.queries), len(inputs.documents)
    relevance = None if inputs.relevance is None else _dense(inputs.relevance)
    mask = None if inputs.mask is None else _dense(inputs.mask)
    positives: list[dict[int, float]] = [{} for _ in range(queries)]
    negatives: list[list[int]] = [[] for _ in range(queries)]
    for i in range(queries):
        for j in range(documents):
            grade = float(i == j) if relevance is None else float(relevance[i][j])
            if mask is not None and mask[i][j]:
                continue
            if grade > 0:
                positives[i][j] = grade
            elif not _repeated(inputs, i, j):
                negatives[i].append(j)
    return positives, negatives


def _dense(matrix: Tensor) -> list[list[float]]:
    return (matrix if matrix.layout == torch.strided else matrix.to_dense()).tolist()


def _repeated(inputs, i: int, j: int) -> bool:
    queries, documents = inputs.query_ids, inputs.document_ids
    same_query = queries is not None and j < len(queries) and queries[i].item() == queries[j].item()
    return same_query or (documents is not None and documents[i].item() == documents[j].item())


def scale_of(options: dict, default_temperature: float) -> float:
    """What multiplies the cosines."""
    if options.get("scale") is not None:
        return options["scale"]
    temperature = options.get("temperature")
    return 1 / (default_temperature if temperature is None else temperature)


def query_terms(inputs, options: dict) -> list[tuple[list[tuple[Tensor, float]], list[Tensor]]]:
    """Per query: cosines of its positives with their grades, and cosines of its negatives that are not masked."""
    queries, documents = units(inputs.queries), units(inputs.documents)
    margin = options.get("false_negative_margin")
    found = []
    for i, (positives, negatives) in enumerate(zip(*document_pairs(inputs), strict=True)):
        good = [(dot(queries[i], documents[j]), grade) for j, grade in positives.items()]
        bad = [dot(queries[i], documents[j]) for j in negatives]
        if margin is not None:
            best = max((s.item() for s, _ in good), default=math.inf)
            bad = [s for s in bad if s.item() <= best - margin]
        found.append((good, bad))
    return found

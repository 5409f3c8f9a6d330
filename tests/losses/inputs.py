"""Inputs of the losses, and the scenarios in which the contract is tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

DIM = 6
CLASSES = 9
# Unequal sizes and orphans (classes 4, 5 and 7); class 8 never occurs.
LABELS = (0, 1, 0, 2, 1, 0, 4, 3, 2, 0, 3, 5, 1, 7, 6, 6)


@dataclass
class Inputs:
    """What a loss is called with."""

    #: The fields that may carry gradient.
    floats: ClassVar[tuple[str, ...]]

    def call(self, loss) -> Tensor:
        raise NotImplementedError

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that may carry gradient, each object once."""
        found: dict[str, Tensor] = {}
        for name in self.floats:
            tensor = getattr(self, name)
            if tensor is not None and not any(tensor is other for other in found.values()):
                found[name] = tensor
        return found

    def tensors(self) -> list[Tensor]:
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            found += list(value) if isinstance(value, tuple) else [value]
        return [tensor for tensor in found if tensor is not None]

    def fresh(self, dtype: torch.dtype | None = None, wanted: tuple[str, ...] | None = None):
        """The same numbers in new leaves; those named in ``wanted`` (default: all) require grad."""
        changes: dict[str, Tensor] = {}
        for name, leaf in self.leaves().items():
            new = leaf.detach().clone().to(dtype or leaf.dtype).requires_grad_(wanted is None or name in wanted)
            changes.update(dict.fromkeys((n for n in self.floats if getattr(self, n) is leaf), new))
        return replace(self, **changes)


@dataclass
class LabelInputs(Inputs):
    """Of a label loss."""

    embeddings: Tensor
    labels: Tensor | None
    indices_tuple: tuple[Tensor, ...] | None = None
    ref_emb: Tensor | None = None
    ref_labels: Tensor | None = None
    floats: ClassVar[tuple[str, ...]] = ("embeddings", "ref_emb")

    def call(self, loss) -> Tensor:
        return loss(self.embeddings, self.labels, self.indices_tuple, self.ref_emb, self.ref_labels)


@dataclass
class DocumentInputs(Inputs):
    """Of a query-document loss."""

    queries: Tensor
    documents: Tensor
    relevance: Tensor | None = None
    mask: Tensor | None = None
    query_ids: Tensor | None = None
    document_ids: Tensor | None = None
    floats: ClassVar[tuple[str, ...]] = ("queries", "documents")

    def call(self, loss) -> Tensor:
        ids = {"query_ids": self.query_ids, "document_ids": self.document_ids}
        return loss(self.queries, self.documents, self.relevance, self.mask, **ids)


Scenario = Callable[[torch.Generator, int], Inputs]


def points(count: int, generator: torch.Generator, dim: int = DIM) -> Tensor:
    """Raw embeddings of varied length."""
    lengths = 0.5 + torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * lengths


def labels(generator: torch.Generator) -> Tensor:
    base = torch.tensor(LABELS)
    return base[torch.randperm(len(base), generator=generator)]


def plain(g: torch.Generator, dim: int = DIM) -> Inputs:
    return LabelInputs(points(len(LABELS), g, dim), labels(g))


def one_class(g: torch.Generator, dim: int = DIM) -> Inputs:
    return LabelInputs(points(5, g, dim), torch.full((5,), 3))


def all_distinct(g: torch.Generator, dim: int = DIM) -> Inputs:
    return LabelInputs(points(7, g, dim), torch.randperm(CLASSES, generator=g)[:7])


def single(g: torch.Generator, dim: int = DIM) -> Inputs:
    return LabelInputs(points(1, g, dim), torch.tensor([2]))


def empty(g: torch.Generator, dim: int = DIM) -> Inputs:
    return LabelInputs(points(0, g, dim), torch.zeros(0, dtype=torch.long))


def references(g: torch.Generator, dim: int = DIM) -> Inputs:
    rows = plain(g, dim)
    column_labels = torch.randint(CLASSES, (11,), generator=g)
    return replace(rows, ref_emb=points(11, g, dim), ref_labels=column_labels)


def references_are_batch(g: torch.Generator, dim: int = DIM) -> Inputs:
    rows = plain(g, dim)
    return replace(rows, ref_emb=rows.embeddings, ref_labels=rows.labels)


def references_are_copy(g: torch.Generator, dim: int = DIM) -> Inputs:
    rows = plain(g, dim)
    return replace(rows, ref_emb=rows.embeddings.clone(), ref_labels=rows.labels.clone())


def no_references(g: torch.Generator, dim: int = DIM) -> Inputs:
    return replace(plain(g, dim), ref_emb=points(0, g, dim), ref_labels=torch.zeros(0, dtype=torch.long))


def _mined(inputs: LabelInputs, column_labels: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    same = inputs.labels[:, None] == column_labels
    if inputs.ref_emb is None:
        a1, p = (same & ~torch.eye(len(same), dtype=torch.bool)).nonzero(as_tuple=True)
    else:
        a1, p = same.nonzero(as_tuple=True)
    a2, n = (~same).nonzero(as_tuple=True)
    some = torch.randint(len(a1), (len(a1),), generator=g)  # with duplicates
    others = torch.randint(len(a2), (len(a2) // 2,), generator=g)
    return a1[some], p[some], a2[others], n[others]


def mined_pairs(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = plain(g, dim)
    return replace(inputs, indices_tuple=_mined(inputs, inputs.labels, g))


def mined_triplets(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = plain(g, dim)
    anchors, positives, _, _ = _mined(inputs, inputs.labels, g)
    others = inputs.labels[None] != inputs.labels[anchors][:, None]
    negatives = torch.multinomial(others.double(), 1, generator=g).squeeze(1)
    return replace(inputs, indices_tuple=(anchors, positives, negatives))


def mined_without_labels(g: torch.Generator, dim: int = DIM) -> Inputs:
    return replace(mined_pairs(g, dim), labels=None)


def mined_both_ways(g: torch.Generator, dim: int = DIM) -> Inputs:
    """A pair may be mined as positive and as negative: it then counts as both."""
    inputs = mined_pairs(g, dim)
    a1, p, a2, n = inputs.indices_tuple
    return replace(inputs, labels=None, indices_tuple=(a1, p, torch.cat([a2, a1[:4]]), torch.cat([n, p[:4]])))


def mined_nothing(g: torch.Generator, dim: int = DIM) -> Inputs:
    nothing = torch.zeros(0, dtype=torch.long)
    return replace(plain(g, dim), indices_tuple=(nothing, nothing, nothing, nothing))


def mined_references(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = references(g, dim)
    return replace(inputs, indices_tuple=_mined(inputs, inputs.ref_labels, g))


def multi_hot(g: torch.Generator, dim: int = DIM) -> Inputs:
    hot = (torch.rand(14, 5, generator=g) < 0.25).long()
    hot[0] = 0  # a sample without any label
    return LabelInputs(points(14, g, dim), hot)


def multi_hot_references(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = multi_hot(g, dim)
    hot = (torch.rand(9, 5, generator=g) < 0.25).double()
    return replace(inputs, ref_emb=points(9, g, dim), ref_labels=hot)


def pairs(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(9, g, dim), points(9, g, dim))


def extra_documents(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(7, g, dim), points(13, g, dim))


def several_positives(g: torch.Generator, dim: int = DIM) -> Inputs:
    relevance = (torch.rand(8, 11, generator=g) < 0.3).double()
    relevance[0] = 0  # a query without an answer
    relevance[1] = 1  # a query without a negative
    return DocumentInputs(points(8, g, dim), points(11, g, dim), relevance)


def fewer_documents(g: torch.Generator, dim: int = DIM) -> Inputs:
    relevance = (torch.rand(9, 5, generator=g) < 0.3).double()
    return DocumentInputs(points(9, g, dim), points(5, g, dim), relevance)


def graded(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = several_positives(g, dim)
    return replace(inputs, relevance=inputs.relevance * torch.rand(8, 11, generator=g, dtype=torch.float64))


def graded_coo(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = graded(g, dim)
    return replace(inputs, relevance=inputs.relevance.to_sparse_coo())


def graded_csr(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = graded(g, dim)
    return replace(inputs, relevance=inputs.relevance.to_sparse_csr())


def masked(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = graded(g, dim)
    return replace(inputs, mask=torch.rand(8, 11, generator=g) < 0.3)


def masked_sparse(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = extra_documents(g, dim)
    return replace(inputs, mask=(torch.rand(7, 13, generator=g) < 0.3).float().to_sparse_coo())


def repeated_queries(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = extra_documents(g, dim)
    return replace(inputs, query_ids=torch.tensor([5, 6, 5, -1, 6, 5, 2**60]))


def repeated_documents(g: torch.Generator, dim: int = DIM) -> Inputs:
    inputs = extra_documents(g, dim)
    return replace(inputs, document_ids=torch.randint(5, (13,), generator=g))


def repeated_everything(g: torch.Generator, dim: int = DIM) -> Inputs:
    relevance = torch.diag_embed(torch.rand(9, generator=g, dtype=torch.float64))
    ids = {"query_ids": torch.randint(5, (9,), generator=g), "document_ids": torch.randint(5, (9,), generator=g)}
    return replace(pairs(g, dim), relevance=relevance, mask=torch.rand(9, 9, generator=g) < 0.2, **ids)


def one_pair(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(1, g, dim), points(1, g, dim))


def no_queries(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(0, g, dim), points(4, g, dim))


def no_pairs(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(0, g, dim), points(0, g, dim))


def nothing_relevant(g: torch.Generator, dim: int = DIM) -> Inputs:
    return DocumentInputs(points(3, g, dim), points(4, g, dim), torch.zeros(3, 4))


#: What each kind of loss is tested on, by the capability that the scenario needs.
SCENARIOS: dict[str, dict[str, tuple[Scenario, ...]]] = {
    "labels": {
        "": (plain, one_class, all_distinct, single, empty),
        "reference_set": (references, references_are_batch, references_are_copy, no_references),
        "mined_pairs": (mined_pairs, mined_triplets, mined_without_labels, mined_both_ways, mined_nothing),
        "mined_pairs reference_set": (mined_references,),
        "multi_label": (multi_hot,),
        "multi_label reference_set": (multi_hot_references,),
    },
    "documents": {
        "": (
            pairs,
            extra_documents,
            several_positives,
            fewer_documents,
            graded,
            graded_coo,
            graded_csr,
            masked,
            masked_sparse,
            repeated_queries,
            repeated_documents,
            repeated_everything,
            one_pair,
            no_queries,
            no_pairs,
            nothing_relevant,
        ),
    },
}


def scenarios_for(capabilities) -> list[Scenario]:
    """The scenarios that a loss with these capabilities must honour."""
    groups = SCENARIOS[capabilities.inputs].items()
    return [
        scenario
        for needs, scenarios in groups
        if all(getattr(capabilities, need) for need in needs.split())
        for scenario in scenarios
    ]


def typical(capabilities, seed: int = 0, dim: int = DIM) -> Inputs:
    """One ordinary batch."""
    scenario = plain if capabilities.inputs == "labels" else several_positives
    return scenario(torch.Generator().manual_seed(seed), dim)

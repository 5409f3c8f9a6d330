"""The data of the query explorer: every text once, and cut so that the page stays small."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nearfar.eval.report.formatting import count, shorten
from nearfar.eval.report.html_json import script_json
from nearfar.eval.report.model import QueryExample, Report

# The page's Plotly takes 4.8 MB and its charts and tables up to 1 MB: with this the page stays below 8 MB.
BUDGET = 2_000_000
# Documents a model and characters a text, tried in turn until the budget holds.
_STEPS = ((10, 300), (5, 300), (5, 200), (5, 120), (3, 120), (3, 80), (2, 60), (1, 40))


@dataclass(frozen=True)
class Explorer:
    """What the explorer shows.

    Attributes:
        content: ready for JSON. "documents" holds [id, text]; "queries" holds [id, text, value of each model,
            expected documents as [document, grade, rank with each model or null], relevant documents in all, and for
            each model the returned documents as [document, score, 1 where relevant]], documents by place.
        queries: how many queries it holds.
        total: how many were to be shown.
        documents: returned documents a model and query, at most.
        characters: of a document's or query's text, at most.
    """

    content: dict[str, Any]
    queries: int
    total: int
    documents: int
    characters: int

    @property
    def note(self) -> str:
        """What was left out, in words."""
        shown = (
            f"All {count(self.total)} queries are here"
            if self.queries == self.total
            else f"{count(self.queries)} of {count(self.total)} queries are here, those on which the models differ most"
        )
        first = "the first document" if self.documents == 1 else f"the first {self.documents} documents"
        return f"{shown}, with {first} of each model; texts end after {self.characters} characters."


def explorer(report: Report, budget: int | None = BUDGET) -> Explorer | None:
    """The explorer's data within a budget of bytes, or whole without one; None when no model brings answers.

    Texts are cut first, then documents left out, then queries: those of least change between the models go first.
    """
    rows = _rows(report)
    if not rows:
        return None
    if budget is None:
        return _make(report, rows, len(rows), sys.maxsize, sys.maxsize)
    for documents, characters in _STEPS:
        made = _make(report, rows, len(rows), documents, characters)
        if _size(made) <= budget:
            return made
    kept = len(rows)
    while kept > 1 and _size(made) > budget:
        kept = max(1, int(kept * min(0.95, budget / _size(made))))
        made = _make(report, _most_changed(rows, kept), len(rows), documents, characters)
    return made


@dataclass(frozen=True)
class _Row:
    """One query with its values and answers by model; None where a model brings none."""

    values: list[float]
    examples: list[QueryExample | None]

    @property
    def first(self) -> QueryExample:
        return next(example for example in self.examples if example is not None)


def _rows(report: Report) -> list[_Row]:
    answers = [{example.query_id: example for example in model.answers} for model in report.models]
    values = [
        dict(zip(model.ranking.query_ids, model.ranking.per_query[report.primary_metric].tolist(), strict=True))
        for model in report.models
    ]
    wanted = [query for query in report.models[0].ranking.query_ids if any(query in found for found in answers)]
    return [_Row([of[query] for of in values], [found.get(query) for found in answers]) for query in wanted]


def _most_changed(rows: Sequence[_Row], kept: int) -> list[_Row]:
    """Rows of the largest spread between models, in their order; of a single model, those of the lowest value."""
    single = len(rows[0].values) == 1
    spread = [row.values[0] if single else min(row.values) - max(row.values) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: spread[i])
    return [rows[i] for i in sorted(order[:kept])]


def _make(report: Report, rows: Sequence[_Row], total: int, documents: int, characters: int) -> Explorer:
    places: dict[str, int] = {}
    texts: list[list[str]] = []

    def place(name: str, text: str) -> int:
        if name not in places:
            places[name] = len(texts)
            texts.append([name, shorten(text, characters)])
        return places[name]

    queries = []
    for row in rows:
        ranks: dict[str, list[Any]] = {}
        for model, example in enumerate(row.examples):
            for wanted in (example.expected if example else [])[:documents]:
                at = place(wanted.id, wanted.text)
                entry = ranks.setdefault(wanted.id, [at, wanted.grade, [None] * len(row.examples)])
                entry[2][model] = wanted.rank
        returned = [
            [[place(d.id, d.text), round(d.score, 3), int(d.relevant)] for d in example.returned[:documents]]
            if example
            else None
            for example in row.examples
        ]
        text = shorten(row.first.text, characters)
        values = [round(value, 4) for value in row.values]
        expected = list(ranks.values())[:documents]
        queries.append([row.first.query_id, text, values, expected, row.first.expected_total, returned])
    content = {
        "metric": report.primary_metric,
        "models": [model.name for model in report.models],
        "documents": texts,
        "queries": queries,
    }
    most = max(len(e.returned[:documents]) for row in rows for e in row.examples if e)
    return Explorer(content, len(rows), total, most, characters)


def _size(made: Explorer) -> int:
    return len(script_json(made.content).encode("utf-8", "replace"))

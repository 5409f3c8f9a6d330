"""``nearfar search``: ask an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nearfar.cli.output import AsJson, Output

EXAMPLE = 'Example: nearfar search demo/index "can\'t stop shaking hands" --k 5'
_SHOWN_CHARACTERS = 100


def search(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    query: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many answers.")] = 10,
    model: Annotated[str | None, typer.Option(help="Model folder or name, when the index does not record it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the documents of an index that are nearest to a text."""
    from nearfar.retrieval import Retriever

    out = Output(as_json)
    with Retriever.open(index, model) as retriever:
        hits = next(iter(retriever.search(query, k)))
    rows = [
        [str(rank), f"{hit.score:.3f}", hit.id, _short(hit.document.content) if hit.document else ""]
        for rank, hit in enumerate(hits, start=1)
    ]
    out.table(["", "score", "id", "document"], rows)
    if not hits:
        out.line("No documents: the index is empty.")
    found = [{"id": hit.id, "score": hit.score, "text": hit.document.content if hit.document else None} for hit in hits]
    out.result({"query": query, "hits": found})


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _SHOWN_CHARACTERS else one_line[: _SHOWN_CHARACTERS - 1] + "…"

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
    matches_only: Annotated[
        bool, typer.Option("--matches-only", help="Only what reaches the threshold that nearfar calibrate found.")
    ] = False,
    threshold: Annotated[
        str | None, typer.Option(help="With --matches-only: the threshold's name, where the index keeps several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the documents of an index that are nearest to a text."""
    from nearfar.errors import InputError
    from nearfar.retrieval import Retriever

    out = Output(as_json)
    if threshold is not None and not matches_only:
        raise InputError("--threshold names the threshold of --matches-only; give both")
    with Retriever.open(index, model) as retriever:
        hits = retriever.search(query, k, matches_only=(threshold or True) if matches_only else False)[0]
        empty = len(retriever.index) == 0
    rows = [
        [str(rank), f"{hit.score:.3f}", hit.id, _short(hit.document.content) if hit.document else ""]
        for rank, hit in enumerate(hits, start=1)
    ]
    out.table(["", "score", "id", "document"], rows)
    if not hits:
        out.line("No documents: the index is empty." if empty else "No document reaches the threshold.")
    found = [{"id": hit.id, "score": hit.score, "text": hit.document.content if hit.document else None} for hit in hits]
    out.result({"query": query, "hits": found})


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _SHOWN_CHARACTERS else one_line[: _SHOWN_CHARACTERS - 1] + "…"

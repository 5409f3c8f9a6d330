"""``nearfar index``: build and inspect indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nearfar.cli.output import AsJson, Output

app = typer.Typer(help="Build and inspect indexes.")


@app.command("build", epilog="Example: nearfar index build corpus.jsonl my-index --model demo/run/model")
def build(
    corpus: Annotated[Path, typer.Argument(help="A BEIR folder, or its corpus.jsonl (lines with _id and text).")],
    index: Annotated[Path, typer.Argument(help="Folder of the new index.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of a sentence-transformers model.")],
    metric: Annotated[str, typer.Option(help="cosine, inner_product or l2.")] = "cosine",
    factory: Annotated[str, typer.Option(help="flat (exact), ivf (clustered), or auto by size.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Texts encoded at once.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Encode a corpus and index it."""
    from nearfar.data import iter_corpus
    from nearfar.errors import DataFileError
    from nearfar.retrieval import Retriever

    out = Output(as_json)
    documents = iter_corpus(corpus)
    first = next(documents, None)
    if first is None:
        raise DataFileError(corpus, "holds no document; give a corpus with at least one line")
    from itertools import chain

    with Retriever.create(index, model, metric=metric, factory=factory) as retriever:
        count = retriever.index_documents(
            chain([first], documents), batch_size=batch_size, show_progress=out.show_progress
        )
        info = retriever.index.info()
    out.line(f"Indexed {count:,} documents in {index}")
    out.result(info)


@app.command("info", epilog="Example: nearfar index info demo/index")
def info(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    as_json: AsJson = False,
) -> None:
    """Show what an index is."""
    from nearfar.retrieval import VectorIndex

    out = Output(as_json)
    with VectorIndex.open(index) as opened:
        found = opened.info()
    out.table(["", ""], [[name, str(value)] for name, value in found.items() if not isinstance(value, list | dict)])
    for name, card in found["thresholds"].items():
        out.line(f"threshold {name!r}: {card['threshold']:.6f}, {card['risk']} at {card['alpha']:.4g}")
    out.result(found)


@app.command("verify", epilog="Example: nearfar index verify demo/index")
def verify(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    as_json: AsJson = False,
) -> None:
    """Hash every file of an index again and compare with its manifest."""
    from nearfar.retrieval import VectorIndex

    out = Output(as_json)
    with VectorIndex.open(index) as opened:
        opened.verify()
        count = len(opened)
    out.line(f"{index} is sound: {count:,} vectors")
    out.result({"index": str(index), "vectors": count, "sound": True})

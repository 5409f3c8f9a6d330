"""``nearfar train``: fine-tune a model on the user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output

EXAMPLE = (
    "Examples: nearfar train pairs.jsonl --model all-MiniLM-L6-v2 --loss decoupled-softmax --output run; "
    "nearfar train recipe.yaml --set loss_options.gamma=64"
)


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Pairs (query, document, optional label), labelled texts (text, label) as JSONL, CSV or Parquet; "
            "what `nearfar mine` wrote; a BEIR folder with train judgements; or a recipe, which is YAML. Every run's "
            "folder holds its own."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Folder or hub name of a sentence-transformers model.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    loss: Annotated[str | None, typer.Option(help="A loss; `nearfar losses` lists them. decoupled-softmax.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the loss, as name=value; repeatable.")] = None,
    dev: Annotated[Path | None, typer.Option(help="BEIR folder to evaluate on; keeps the best epoch.")] = None,
    dev_split: Annotated[str | None, typer.Option(help="Its judgements: qrels/<split>.tsv. dev.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step and process. 64.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; 2e-5 suits transformers, 5e-2 static models. 2e-5.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of data order and new layers. 0.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of a recipe, as key=value; repeatable: --set mini_batch_size=32."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an embedding model. What is given beside a recipe wins over it."""
    from nearfar.retrieval.training.recipe import SUFFIXES, Recipe, read_recipe, run_recipe, set_values

    out = Output(as_json)
    given: dict[str, Any] = {
        "model": model,
        "output": None if output is None else str(output),
        "loss": loss,
        "dev": None if dev is None else str(dev),
        "dev_split": dev_split,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    values = read_recipe(data) if data.suffix in SUFFIXES else {"data": str(data)}
    values |= {name: value for name, value in given.items() if value is not None}
    words = [*(f"loss_options.{word}" for word in option or []), *(set_ or [])]
    recipe = Recipe(**set_values(values, words))
    result = run_recipe(recipe, resume=resume, show_progress=out.show_progress)
    folder = result.output_dir / "model"
    out.table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in result.metrics.items()])
    out.line(f"The model is in {folder}")
    out.result({"model": str(folder), "metrics": result.metrics})

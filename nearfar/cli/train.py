"""``nearfar train``: fine-tune a model on the user's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output

if TYPE_CHECKING:
    from datasets import Dataset

    from nearfar.data import LabelledTexts, TrainingPairs

EXAMPLE = "Example: nearfar train pairs.jsonl --model all-MiniLM-L6-v2 --loss decoupled-softmax --output run"


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Pairs (query, document, optional label), labelled texts (text, label) as JSONL, CSV or Parquet; "
            "what `nearfar mine` wrote; or a BEIR folder with train judgements."
        ),
    ],
    model: Annotated[str, typer.Option(help="Folder or hub name of a sentence-transformers model.")],
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    loss: Annotated[str, typer.Option(help="A loss; `nearfar losses` lists them.")] = "decoupled-softmax",
    option: Annotated[list[str] | None, typer.Option(help="An option of the loss, as name=value; repeatable.")] = None,
    dev: Annotated[Path | None, typer.Option(help="BEIR folder to evaluate on; keeps the best epoch.")] = None,
    dev_split: Annotated[str, typer.Option(help="Its judgements: qrels/<split>.tsv.")] = "dev",
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak; 2e-5 suits transformers, 5e-2 static models.")] = 2e-5,
    seed: Annotated[int, typer.Option(help="Of data order and new layers.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an embedding model."""
    from nearfar.data import load_beir

    out = Output(as_json)
    options = _options(option or [])
    rows = load_training_data(data)
    dataset = None if dev is None else load_beir(dev, dev_split)
    from nearfar.retrieval import fine_tune
    from nearfar.retrieval.training.evaluator import RetrievalEvaluator

    result = fine_tune(
        model,
        rows,
        loss=loss,
        loss_options=options,
        output_dir=output,
        evaluator=None if dataset is None else RetrievalEvaluator(dataset),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        resume=resume,
        show_progress=out.show_progress,
    )
    out.table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in result.metrics.items()])
    out.line(f"The model is in {output / 'model'}")
    out.result({"model": str(output / "model"), "metrics": result.metrics})


def load_training_data(path: Path) -> TrainingPairs | LabelledTexts | Dataset:
    """Pairs, labelled texts or mined rows, told apart by the columns of the file."""
    from nearfar.data import is_mined, load_beir, load_labelled, load_mined, load_pairs, pairs_from_dataset
    from nearfar.errors import DataFileError

    if path.is_dir():
        return pairs_from_dataset(load_beir(path, "train"))
    if is_mined(path):
        return load_mined(path)
    try:
        return load_pairs(path)
    except DataFileError as no_pairs:
        try:
            return load_labelled(path)
        except DataFileError as no_labels:
            # The complaint that came later in the file belongs to the format that was meant.
            raise (no_labels if (no_labels.line or 0) > (no_pairs.line or 0) else no_pairs) from None


def _options(words: list[str]) -> dict[str, Any]:
    from nearfar.errors import InputError

    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InputError(f"--option {word!r} is not name=value, for example --option gamma=64")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options

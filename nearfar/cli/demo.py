"""``nearfar demo``: the whole job on real data that installs with the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nearfar.data import DemoDataset
    from nearfar.retrieval.evaluation import ModelEvaluation

EXAMPLE = "Example: nearfar demo --output demo"
RECIPE: dict[str, Any] = {"loss": "multi-similarity", "epochs": 3, "batch_size": 256, "learning_rate": 5e-2}
_MARKER = "nearfar-demo.json"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the run, the index, the report and the test texts.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Of the split and the training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on medical terms, index them, and measure the gain on terms never seen in training."""
    from nearfar.data import demo_dataset, demo_model, write_labelled
    from nearfar.eval import write_report
    from nearfar.retrieval import fine_tune
    from nearfar.retrieval.training.evaluator import RetrievalEvaluator

    out = Output(as_json)
    _prepare(output)
    data = demo_dataset(seed)
    out.line(f"Data: {data.source.acknowledgement}")
    out.line(
        f"{len(data.corpus):,} terms; {len(data.train):,} training pairs; {len(data.test.queries):,} test queries "
        "about terms never seen in training\n"
    )
    before = _evaluate(out, output / "index-before", demo_model(), "before", data, seed)
    shutil.rmtree(output / "index-before")
    result = fine_tune(
        demo_model(),
        data.train,
        output_dir=output / "run",
        evaluator=RetrievalEvaluator(data.dev, metrics=["R@1", "R@10", "RR@10"]),
        seed=seed,
        show_progress=out.show_progress,
        **RECIPE,
    )
    after = _evaluate(out, output / "index", result.model, "after", data, seed, output / "run" / "model")
    report = write_report(_report(data, before, after, {**RECIPE, "seed": seed}), output / "report")
    write_labelled(data.test_texts, output / "texts.jsonl")
    _show(out, before.headline(), after.headline())
    out.line(f"\nReport: {report}")
    out.line(f'Try: nearfar search {output / "index"} "can\'t stop shaking hands"')
    out.result({"before": before.headline(), "after": after.headline(), "report": str(report)})


def _prepare(output: Path) -> None:
    """Make the folder, or clear what an earlier demo left; nothing else is ever removed."""
    from nearfar.errors import InputError

    if output.exists() and not output.is_dir():
        raise InputError(f"--output {str(output)!r} is a file; choose a folder")
    marker = output / _MARKER
    if output.exists() and any(output.iterdir()) and not marker.exists():
        raise InputError(f"--output {str(output)!r} holds other files; choose a new or empty folder")
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"made_by": "nearfar demo"}), encoding="utf-8")
    for part in ("index-before", "run", "index", "report"):
        shutil.rmtree(output / part, ignore_errors=True)


def _evaluate(
    out: Output,
    index: Path,
    model: SentenceTransformer,
    name: str,
    data: DemoDataset,
    seed: int,
    model_path: Path | None = None,
) -> ModelEvaluation:
    from nearfar.retrieval import Retriever
    from nearfar.retrieval.evaluation import evaluate_retriever

    with Retriever.create(index, model, model_name_or_path=model_path) as retriever:
        retriever.index_documents(data.corpus.values(), show_progress=out.show_progress)
        return evaluate_retriever(retriever, data.test, data.test_texts, name=name, seed=seed)


def _report(data: DemoDataset, before: ModelEvaluation, after: ModelEvaluation, recipe: Mapping[str, Any]) -> Any:
    from nearfar.eval import Report

    return Report(
        title="Finding clinical terms in plain words",
        dataset="unseen HPO terms",
        models=[before.section, after.section],
        primary_metric="R@1",
        # Synonyms of one term are not independent queries.
        clusters={query: next(iter(grades)) for query, grades in data.test.qrels.items()},
        acknowledgement=data.source.acknowledgement,
        recipe=recipe,
        notes=(
            "Test terms appear in no training pair. Queries are their synonyms; the corpus holds all terms.",
            "Thresholds are measured on names and synonyms of test terms with at least five texts.",
        ),
    )


def _show(out: Output, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    rows = [[name, f"{before[name]:.4f}", f"{after[name]:.4f}", f"{after[name] - before[name]:+.4f}"] for name in after]
    out.line()
    out.table(["unseen terms", "before", "after", "change"], rows)

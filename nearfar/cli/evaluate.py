"""``nearfar evaluate``: a run against judgements, or a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nearfar.cli.output import AsJson, Output

EXAMPLE = (
    "Examples: nearfar evaluate --run bm25.run --qrels qrels.txt --metric nDCG@10 | "
    "nearfar evaluate --data my-beir --model run/model --baseline all-MiniLM-L6-v2 --report report"
)


def evaluate(
    run: Annotated[Path | None, typer.Option(help="A TREC run to score.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="TREC judgements for the run.")] = None,
    data: Annotated[Path | None, typer.Option(help="A BEIR folder to search with a model.")] = None,
    split: Annotated[str, typer.Option(help="Its judgements: qrels/<split>.tsv.")] = "test",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Another model to compare with.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Labelled texts (text, label) to measure thresholds on.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric such as nDCG@10; repeatable.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html, report.json and report.md.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run against judgements, or a model on a data set, with a report."""
    from nearfar.errors import InputError

    out = Output(as_json)
    if run is not None and qrels is not None and data is None and model is None:
        _evaluate_run(out, run, qrels, metric)
    elif data is not None and model is not None and run is None and qrels is None:
        _evaluate_models(out, data, split, [m for m in (baseline, model) if m], texts, metric, report)
    else:
        raise InputError("give either --run with --qrels, or --data with --model")


def _evaluate_run(out: Output, run: Path, qrels: Path, metrics: list[str] | None) -> None:
    from nearfar.data import load_trec_qrels, load_trec_run
    from nearfar.eval import DEFAULT_METRICS, evaluate_run

    result = evaluate_run(load_trec_run(run), load_trec_qrels(qrels), metrics or DEFAULT_METRICS)
    out.table(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in result.mean.items()])
    out.line(
        f"\n{len(result.query_ids):,} queries, {len(result.missing_queries):,} of them missing from the run (they "
        f"count as 0); {result.tie_rate:.1%} of the scores are tied"
    )
    out.result({"mean": result.mean, "queries": len(result.query_ids), "missing": result.missing_queries})


def _evaluate_models(
    out: Output,
    data: Path,
    split: str,
    models: list[str],
    texts: Path | None,
    metrics: list[str] | None,
    report: Path | None,
) -> None:
    import tempfile

    from nearfar.data import load_beir, load_labelled
    from nearfar.eval import Report, write_report
    from nearfar.eval.metrics import parse_metric
    from nearfar.retrieval import Retriever
    from nearfar.retrieval.evaluation import METRICS, evaluate_retriever

    for name in metrics or ():
        parse_metric(name)
    dataset = load_beir(data, split)
    labelled = None if texts is None else load_labelled(texts)
    found = []
    for name in models:
        with (
            tempfile.TemporaryDirectory() as folder,
            Retriever.create(Path(folder) / "index", name, factory="flat") as retriever,
        ):
            retriever.index_documents(dataset.corpus.values(), show_progress=out.show_progress)
            found.append(evaluate_retriever(retriever, dataset, labelled, name=name, metrics=metrics or METRICS))
    means = [evaluation.section.ranking.mean for evaluation in found]
    names = list(means[0])
    out.table(["metric", *models], [[n, *[f"{mean[n]:.4f}" for mean in means]] for n in names])
    if report is not None:
        content = Report(
            title=f"Evaluation on {dataset.name}",
            dataset=dataset.name,
            models=[evaluation.section for evaluation in found],
            primary_metric=(metrics or METRICS)[0],
            recipe={"data": str(data), "split": split, "models": models},
        )
        out.line(f"\nReport: {write_report(content, report)}")
    out.result(dict(zip(models, means, strict=True)))

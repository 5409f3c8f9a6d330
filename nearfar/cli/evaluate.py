"""``nearfar evaluate``: a run against judgements, or a model on a data set; gates for continuous integration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output

if TYPE_CHECKING:
    from nearfar.eval import ModelSection, RankingResult
    from nearfar.eval.report.gates import EarlierReport

EXAMPLE = (
    "Examples: nearfar evaluate --run bm25.run --qrels qrels.txt --metric nDCG@10 | "
    "nearfar evaluate --data my-beir --model run/model --baseline all-MiniLM-L6-v2 --report report | "
    "nearfar evaluate --data my-beir --model run/model --fail-under nDCG@10=0.40 --baseline report.json --max-drop 0.01"
)
_GATE_FAILED = 1


def evaluate(
    run: Annotated[Path | None, typer.Option(help="A TREC run to score.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="TREC judgements for the run.")] = None,
    data: Annotated[Path | None, typer.Option(help="A BEIR folder to search with a model.")] = None,
    split: Annotated[str, typer.Option(help="Its judgements: qrels/<split>.tsv.")] = "test",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Another model to compare with, or a report.json.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Labelled texts (text, label) to measure thresholds on.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric such as nDCG@10; repeatable.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html, report.json and report.md.")] = None,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="Exit with 1 when METRIC=NUMBER is not reached; repeatable.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Exit with 1 when a metric (of --metric, else all) falls further than this.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Score a run against judgements, or a model on a data set, with a report."""
    from nearfar.errors import InputError

    out = Output(as_json)
    gates = _gates(baseline, metric, fail_under, max_drop)
    if run is not None and qrels is not None and data is None and model is None:
        if texts is not None or (baseline is not None and gates.earlier is None):
            raise InputError("with --run, --texts cannot be used, and --baseline must be a report.json")
        return _evaluate_run(out, run, qrels, metric, report, gates)
    if data is not None and model is not None and run is None and qrels is None:
        models = [m for m in (None if gates.earlier else baseline, model) if m]
        return _evaluate_models(out, data, split, models, texts, metric, report, gates)
    raise InputError("give either --run with --qrels, or --data with --model")


@dataclass(frozen=True)
class _Gates:
    """What must hold for exit code 0."""

    floors: list[tuple[str, float]]
    max_drop: float | None
    earlier: EarlierReport | None
    metrics: list[str] | None

    def with_floors(self, metrics: list[str] | tuple[str, ...]) -> list[str]:
        """The metrics to measure: those asked for and those of the floors."""
        return list(dict.fromkeys([*metrics, *(name for name, _ in self.floors)]))

    def failures(self, name: str, ranking: RankingResult, other: RankingResult | None) -> list[str]:
        """One line for each gate that the model fails; `other` is the baseline that was measured just now."""
        from nearfar.errors import InputError
        from nearfar.eval.report.gates import below_floor, dropped

        failures = below_floor(ranking.mean, self.floors)
        if self.max_drop is None:
            return failures
        if self.earlier is None:
            assert other is not None
            return failures + dropped(ranking.mean, other.mean, self.max_drop, self.metrics)
        odd = sorted(self.earlier.queries.symmetric_difference(ranking.query_ids))
        if odd:
            raise InputError(
                f"{self.earlier.path} was scored on other queries: {len(odd)} are in one only, such as {odd[0]!r}; "
                "write the baseline anew on this data"
            )
        return failures + dropped(ranking.mean, self.earlier.means_for(name), self.max_drop, self.metrics)


def _gates(
    baseline: str | None, metrics: list[str] | None, fail_under: list[str] | None, max_drop: float | None
) -> _Gates:
    """Check every gate before anything is measured."""
    from nearfar.errors import InputError
    from nearfar.eval.metrics import parse_metric
    from nearfar.eval.report.gates import dropped, load_report, parse_floor

    for name in metrics or ():
        parse_metric(name)
    floors = [parse_floor(text) for text in fail_under or ()]
    # A model is a folder or a name; neither ends so.
    earlier = load_report(baseline) if baseline is not None and baseline.endswith(".json") else None
    if max_drop is not None:
        dropped({"R@1": 0.0}, {"R@1": 0.0}, max_drop)
        if baseline is None:
            raise InputError("--max-drop needs --baseline: a model, or the report.json of an earlier evaluation")
    elif earlier is not None:
        raise InputError("--baseline is a report.json, and --max-drop is missing; add for example --max-drop 0.01")
    return _Gates(floors, max_drop, earlier, metrics)


def _evaluate_run(
    out: Output, run: Path, qrels: Path, metrics: list[str] | None, report: Path | None, gates: _Gates
) -> int:
    from nearfar.data import load_trec_qrels, load_trec_run
    from nearfar.eval import DEFAULT_METRICS, ModelSection, evaluate_run

    wanted = gates.with_floors(metrics or DEFAULT_METRICS)
    result = evaluate_run(load_trec_run(run), load_trec_qrels(qrels), wanted)
    out.table(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in result.mean.items()])
    out.line(
        f"\n{len(result.query_ids):,} queries, {len(result.missing_queries):,} of them missing from the run (they "
        f"count as 0); {result.tie_rate:.1%} of the scores are tied"
    )
    failures = gates.failures(run.name, result, None)
    if report is not None:
        _write_report(out, report, qrels.name, [ModelSection(run.name, result)], wanted[0], {"run": str(run)})
    content = {"mean": result.mean, "queries": len(result.query_ids), "missing": result.missing_queries}
    return _finish(out, content, gates, failures)


def _evaluate_models(
    out: Output,
    data: Path,
    split: str,
    models: list[str],
    texts: Path | None,
    metrics: list[str] | None,
    report: Path | None,
    gates: _Gates,
) -> int:
    import tempfile

    from nearfar.data import load_beir, load_labelled
    from nearfar.retrieval import Retriever
    from nearfar.retrieval.evaluation import METRICS, evaluate_retriever

    dataset = load_beir(data, split)
    labelled = None if texts is None else load_labelled(texts)
    wanted = gates.with_floors(metrics or METRICS)
    found = []
    for name in models:
        with (
            tempfile.TemporaryDirectory() as folder,
            Retriever.create(Path(folder) / "index", name, factory="flat") as retriever,
        ):
            retriever.index_documents(dataset.corpus.values(), show_progress=out.show_progress)
            found.append(evaluate_retriever(retriever, dataset, labelled, name=name, metrics=wanted))
    rankings = [evaluation.section.ranking for evaluation in found]
    names = list(rankings[0].mean)
    out.table(["metric", *models], [[n, *[f"{ranking.mean[n]:.4f}" for ranking in rankings]] for n in names])
    failures = gates.failures(models[-1], rankings[-1], rankings[0] if len(rankings) > 1 else None)
    if report is not None:
        recipe = {"data": str(data), "split": split, "models": models}
        _write_report(out, report, dataset.name, [evaluation.section for evaluation in found], wanted[0], recipe)
    means = {name: ranking.mean for name, ranking in zip(models, rankings, strict=True)}
    return _finish(out, means, gates, failures)


def _write_report(
    out: Output, folder: Path, dataset: str, sections: list[ModelSection], metric: str, recipe: Mapping[str, Any]
) -> None:
    from nearfar.eval import Report, write_report

    content = Report(
        title=f"Evaluation on {dataset}", dataset=dataset, models=sections, primary_metric=metric, recipe=recipe
    )
    out.line(f"\nReport: {write_report(content, folder)}")


def _finish(out: Output, content: Mapping[str, Any], gates: _Gates, failures: list[str]) -> int:
    """Print the result, and what failed, a line each; the exit code."""
    gated = bool(gates.floors) or gates.max_drop is not None
    out.result({**content, "failed": failures} if gated else content)
    for failure in failures:
        print(f"gate failed: {failure}", file=sys.stderr)  # noqa: T201
    return _GATE_FAILED if failures else 0

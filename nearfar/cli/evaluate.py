"""``nearfar evaluate``: a run against judgements, or a model on a data set; gates for continuous integration."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output
from nearfar.cli.run_files import RelevanceLevel, TieRule, Ties, read_qrels, read_run, tie_sentence

if TYPE_CHECKING:
    from nearfar.data import RetrievalDataset
    from nearfar.eval import ModelSection, RankingResult
    from nearfar.eval.report.gates import EarlierReport
    from nearfar.retrieval import Retriever

EXAMPLE = (
    "Examples: nearfar evaluate --run bm25.run --qrels qrels.txt --metric nDCG@10 | "
    "nearfar evaluate --run run.parquet --qrels qrels.parquet --ties expected | "
    "nearfar evaluate --data my-beir --model run/model --baseline all-MiniLM-L6-v2 --report report | "
    "nearfar evaluate --data my-beir --index my-index --frontier --report report | "
    "nearfar evaluate --data my-beir --model run/model --fail-under nDCG@10=0.40 --baseline report.json --max-drop 0.01"
)
_GATE_FAILED = 1


def evaluate(
    run: Annotated[Path | None, typer.Option(help="A run to score: a TREC file or a .parquet table.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements for it: a TREC file or a .parquet table.")] = None,
    data: Annotated[Path | None, typer.Option(help="A BEIR folder to search with a model.")] = None,
    split: Annotated[str, typer.Option(help="Its judgements: qrels/<split>.tsv.")] = "test",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="A built index of the corpus to search, with its own model, in place of --model."),
    ] = None,
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
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Measure recall and latency of --index by its nprobe, on 500 queries.")
    ] = False,
    ties: Ties = TieRule.trec,
    relevance_level: RelevanceLevel = 1,
    as_json: AsJson = False,
) -> int:
    """Score a run against judgements, or a model on a data set, with a report."""
    from nearfar.errors import InputError

    out = Output(as_json)
    gates = _gates(baseline, metric, fail_under, max_drop)
    rules: dict[str, Any] = {"ties": ties.value, "relevance_level": relevance_level}
    if frontier and index is None:
        raise InputError("--frontier measures a built index; name it with --index")
    if index is not None and (model is not None or data is None):
        raise InputError("--index brings its own model; give it with --data and without --model")
    if run is not None and qrels is not None and data is None and model is None:
        if texts is not None or (baseline is not None and gates.earlier is None):
            raise InputError("with --run, --texts cannot be used, and --baseline must be a report.json")
        return _evaluate_run(out, run, qrels, metric, report, gates, rules)
    if data is not None and (model or index) is not None and run is None and qrels is None:
        models = [m for m in (None if gates.earlier else baseline, model) if m]
        searched = _Searched(data, split, models, index, texts, frontier)
        return _evaluate_models(out, searched, metric, report, gates, rules)
    raise InputError("give either --run with --qrels, or --data with --model or --index")


@dataclass(frozen=True)
class _Searched:
    """What to search with what: models in an index made for the occasion, and a built index last."""

    data: Path
    split: str
    models: list[str]
    index: Path | None
    texts: Path | None
    frontier: bool

    @property
    def names(self) -> list[str]:
        return self.models + ([] if self.index is None else [str(self.index)])


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
    out: Output,
    run: Path,
    qrels: Path,
    metrics: list[str] | None,
    report: Path | None,
    gates: _Gates,
    rules: dict[str, Any],
) -> int:
    from nearfar.eval import DEFAULT_METRICS, ModelSection, evaluate_run

    wanted = gates.with_floors(metrics or DEFAULT_METRICS)
    result = evaluate_run(read_run(run), read_qrels(qrels), wanted, **rules)
    out.table(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in result.mean.items()])
    out.line(
        f"\n{len(result.query_ids):,} queries, {len(result.missing_queries):,} of them missing from the run (they "
        f"count as 0); {tie_sentence(result)}"
    )
    failures = gates.failures(run.name, result, None)
    if report is not None:
        recipe = {"run": str(run), **rules}
        _write_report(out, report, qrels.name, [ModelSection(run.name, result)], wanted[0], recipe)
    content = {
        "mean": result.mean,
        "queries": len(result.query_ids),
        "missing": result.missing_queries,
        "tie_rate": result.tie_rate,
        **rules,
    }
    return _finish(out, content, gates, failures)


def _evaluate_models(
    out: Output,
    searched: _Searched,
    metrics: list[str] | None,
    report: Path | None,
    gates: _Gates,
    rules: dict[str, Any],
) -> int:
    from nearfar.data import load_beir, load_labelled
    from nearfar.retrieval.evaluation import METRICS, evaluate_retriever

    dataset = load_beir(searched.data, searched.split)
    labelled = None if searched.texts is None else load_labelled(searched.texts)
    wanted = gates.with_floors(metrics or METRICS)
    found = []
    for name, built in zip(searched.names, [*[None] * len(searched.models), searched.index], strict=False):
        with _retriever(out, name, built, dataset) as retriever:
            frontier = searched.frontier and built is not None
            found.append(
                evaluate_retriever(
                    retriever, dataset, labelled, name=name, metrics=wanted, frontier=frontier, **rules
                ).section
            )
    rankings = [section.ranking for section in found]
    means = {name: ranking.mean for name, ranking in zip(searched.names, rankings, strict=True)}
    out.table(["metric", *means], [[n, *[f"{mean[n]:.4f}" for mean in means.values()]] for n in rankings[0].mean])
    for name, ranking in zip(searched.names, rankings, strict=True):
        out.line(f"{name}: {tie_sentence(ranking)}")
    points = found[-1].frontier
    if points:
        out.line("\nRecall of the exact neighbours, and the time of a query on one thread:")
        rows = [[p.setting, f"{p.recall:.4f}", f"{p.milliseconds:.3f}", f"{p.p95:.3f}"] for p in points]
        out.table(["setting", "recall@10", "median ms", "p95 ms"], rows)
    failures = gates.failures(searched.names[-1], rankings[-1], rankings[0] if len(rankings) > 1 else None)
    if report is not None:
        recipe = {"data": str(searched.data), "split": searched.split, "models": searched.names, **rules}
        _write_report(out, report, dataset.name, found, wanted[0], recipe)
    return _finish(
        out, {**means, **({"frontier": [asdict(point) for point in points]} if points else {})}, gates, failures
    )


@contextmanager
def _retriever(out: Output, name: str, built: Path | None, dataset: RetrievalDataset) -> Iterator[Retriever]:
    """A built index with its model, or a model with an exact index of the corpus that lives as long as this."""
    import tempfile

    from nearfar.retrieval import Retriever

    if built is not None:
        with Retriever.open(built) as retriever:
            yield retriever
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        Retriever.create(Path(folder) / "index", name, factory="flat") as retriever,
    ):
        retriever.index_documents(dataset.corpus.values(), show_progress=out.show_progress)
        yield retriever


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

"""``nearfar compare``: runs against each other on the same judgements."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nearfar.cli.output import AsJson, Output
from nearfar.cli.run_files import RelevanceLevel, TieRule, Ties, read_qrels, read_run, tie_sentence

EXAMPLE = (
    "Examples: nearfar compare bm25.run dense.run --qrels qrels.txt --metric nDCG@10 | "
    "nearfar compare a.run b.run c.run --qrels qrels.txt --all-pairs --by languages.tsv --json"
)


class PairedTest(str, Enum):
    """The test that decides."""

    randomisation = "randomisation"
    mid_p = "mid-p"
    t = "t"


class Correction(str, Enum):
    """How p-values are adjusted for their number."""

    holm = "holm"
    bh = "bh"
    none = "none"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Two or more runs: TREC files or .parquet tables.", show_default=False)
    ],
    qrels: Annotated[Path, typer.Option(help="Judgements: a TREC file or a .parquet table.")],
    metric: Annotated[list[str] | None, typer.Option(help="A metric such as nDCG@10; repeatable.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The run to hold the others against; else the first.")] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare every run with every other.")] = False,
    by: Annotated[Path | None, typer.Option(help="Lines of query<TAB>group: compare within each group too.")] = None,
    clusters: Annotated[
        Path | None, typer.Option(help="Lines of query<TAB>cluster: queries of a cluster are not independent.")
    ] = None,
    test: Annotated[PairedTest, typer.Option(help="The test that decides.")] = PairedTest.randomisation,
    correction: Annotated[Correction, typer.Option(help="Adjust p-values for many tests.")] = Correction.holm,
    ties: Ties = TieRule.trec,
    relevance_level: RelevanceLevel = 1,
    permutations: Annotated[int, typer.Option(help="Random sign patterns, and bootstrap resamples.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Of the intervals; tests are at 1 - confidence.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say whether runs differ by more than chance: tests, intervals, wins and losses."""
    from nearfar.errors import InputError
    from nearfar.eval import DEFAULT_METRICS, compare_runs, evaluate_run
    from nearfar.eval.ranking import parse_metrics

    out = Output(as_json)
    names = _names(runs)
    if all_pairs and baseline is not None:
        raise InputError("give either --all-pairs or --baseline")
    metrics = metric or list(DEFAULT_METRICS)
    parse_metrics(metrics)  # a wrong name is told before large files are read
    judgements = read_qrels(qrels)
    results = {
        name: evaluate_run(read_run(path), judgements, metrics, relevance_level=relevance_level, ties=ties.value)
        for name, path in zip(names, runs, strict=True)
    }
    comparison = compare_runs(
        results,
        baseline=None if all_pairs else baseline or names[0],
        test=test.value,
        permutations=permutations,
        correction=None if correction is Correction.none else correction.value,
        groups=None if by is None else _read_assignment(by, "group"),
        clusters=None if clusters is None else _read_assignment(clusters, "cluster"),
        confidence=confidence,
        seed=seed,
    )
    out.line(comparison.table())
    out.line()
    for sentence in comparison.verdict():
        out.line(sentence)
    for name, result in results.items():
        if result.missing_queries:
            out.line(f"{name} answers {len(result.missing_queries):,} of the queries not at all; they count as 0.")
        out.line(f"{name}: {tie_sentence(result)}.")
    missing = {name: result.missing_queries for name, result in results.items()}
    tie_rates = {name: result.tie_rate for name, result in results.items()}
    out.result({**comparison.to_dict(), "missing": missing, "ties": ties.value, "tie_rate": tie_rates})


def _names(runs: list[Path]) -> list[str]:
    """The runs' file names, or their whole paths where names repeat."""
    from nearfar.errors import InputError

    if len(set(runs)) < len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise InputError(f"the run {twice} is given twice; name two different files")
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _read_assignment(path: Path, kind: str) -> dict[str, str]:
    """Read lines of query, tab, group. A header names no scored query and so does no harm."""
    from nearfar.data.files import content_lines
    from nearfar.errors import DataFileError

    found: dict[str, str] = {}
    for place, line in content_lines(path):
        fields = line.split("\t")
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise place.error(f"expected 2 columns parted by a tab (query, {kind}), found {line[:60]!r}")
        query, name = (field.strip() for field in fields)
        if found.setdefault(query, name) != name:
            raise place.error(f"query {query!r} is in {kind} {name!r}, and in {found[query]!r} further up")
    if not found:
        raise DataFileError(path, f"the file is empty; expected lines of: query<TAB>{kind}")
    return found

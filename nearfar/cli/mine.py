"""``nearfar mine``: hard negatives for training pairs."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.output import AsJson, Output

if TYPE_CHECKING:
    from nearfar.data import RetrievalDataset, TrainingPairs
    from nearfar.retrieval import MiningReport

EXAMPLE = "Example: nearfar mine pairs.jsonl demo/index --output mined.parquet"


class Sampling(str, Enum):
    """How negatives are drawn from the candidates."""

    top = "top"
    random = "random"
    softmax = "softmax"


class Short(str, Enum):
    """What becomes of queries with too few candidates."""

    drop = "drop"
    keep = "keep"
    fill = "fill"


class Rows(str, Enum):
    """What a row of the file holds."""

    n_tuple = "n-tuple"
    triplet = "triplet"
    pair = "pair"


def mine(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Pairs (query, document, optional label) as JSONL, CSV or Parquet, or a BEIR folder with train "
            "judgements."
        ),
    ],
    index: Annotated[Path, typer.Argument(help="Folder of the index of the corpus.")],
    output: Annotated[Path, typer.Option(help="The .parquet file to write; `nearfar train` reads it.")],
    model: Annotated[str | None, typer.Option(help="Model folder or name, when the index does not record it.")] = None,
    num_negatives: Annotated[int, typer.Option(help="For each query.")] = 4,
    range_min: Annotated[int, typer.Option(help="Leave out this many of the best.")] = 0,
    range_max: Annotated[int, typer.Option(help="The last rank looked at.")] = 50,
    relative_margin: Annotated[
        float, typer.Option(help="A negative scores at most the positive's score less this share of it.")
    ] = 0.05,
    no_margin: Annotated[bool, typer.Option("--no-margin", help="Without the relative margin.")] = False,
    absolute_margin: Annotated[
        float | None, typer.Option(help="A negative scores at most the positive's score less this.")
    ] = None,
    positive_percentile: Annotated[
        float | None, typer.Option(help="A negative scores at most this percentile of all positives.")
    ] = None,
    positive_quantile: Annotated[
        float, typer.Option(help="Margins of a query with several positives: from the hardest, 0, to the easiest, 1.")
    ] = 0.0,
    max_score: Annotated[float | None, typer.Option(help="A negative scores at most this.")] = None,
    min_score: Annotated[float | None, typer.Option(help="A negative scores at least this.")] = None,
    duplicate_similarity: Annotated[
        float | None, typer.Option(help="Leave out documents this similar to a positive.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Folder or hub name of a cross-encoder whose scores the filters measure.")
    ] = None,
    graded: Annotated[bool, typer.Option("--graded", help="Give negatives grades, for the loss bixse.")] = False,
    rows: Annotated[Rows, typer.Option("--format", help="What a row holds.")] = Rows.n_tuple,
    sampling: Annotated[Sampling, typer.Option(help="The hardest, any alike, or by score.")] = Sampling.top,
    temperature: Annotated[float, typer.Option(help="Of --sampling softmax.")] = 0.05,
    short: Annotated[Short, typer.Option(help="Queries with too few negatives; fill: with random ones.")] = Short.drop,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Mine hard negatives from an index; an interrupted run goes on where it stopped."""
    from nearfar.miners import NegativeFilters
    from nearfar.retrieval import Retriever, mine_negatives

    out = Output(as_json)
    filters = NegativeFilters(
        absolute_margin=absolute_margin,
        relative_margin=None if no_margin else relative_margin,
        positive_percentile=positive_percentile,
        max_score=max_score,
        min_score=min_score,
        positive_quantile=positive_quantile,
    )
    data = _read(pairs)
    with Retriever.open(index, model) as retriever:
        report = mine_negatives(
            retriever,
            data,
            output,
            num_negatives=num_negatives,
            mined_format=rows.value,
            graded=graded,
            batch_size=batch_size,
            show_progress=out.show_progress,
            filters=filters,
            range_min=range_min,
            range_max=range_max,
            duplicate_similarity=duplicate_similarity,
            judge=None if judge is None else _judge(judge),
            sampling=sampling.value,
            temperature=temperature,
            short=short.value,
            seed=seed,
        )
    _show(out, report)
    out.result({**asdict(report), "path": str(report.path)})


def _read(path: Path) -> TrainingPairs | RetrievalDataset:
    from nearfar.data import load_beir, load_pairs

    return load_beir(path, "train") if path.is_dir() else load_pairs(path)


def _judge(name: str) -> Any:
    from sentence_transformers import CrossEncoder

    from nearfar.errors import DataFileError

    try:
        return CrossEncoder(name).predict
    except Exception as error:  # anything at all may come out of a model's files, or of the network
        raise DataFileError(name, f"no cross-encoder can be loaded from it: {str(error).splitlines()[0]}") from error


def _show(out: Output, report: MiningReport) -> None:
    what = "Mined already, with the same model, index, pairs and settings" if report.reused else "Mined"
    out.line(f"{what}: {report.rows:,} rows in {report.path}\n")
    counts = {
        "queries": report.queries,
        "pairs": report.pairs,
        "negatives": report.negatives,
        "short queries": report.short,
        "dropped queries": report.dropped,
        "queries without a vector": report.unusable,
        **{f"taken away: {name.replace('_', ' ')}": count for name, count in report.removed.items()},
    }
    out.table(["", "count"], [[name, f"{count:,}"] for name, count in counts.items()])
    out.line(f"\nThe negatives' mean score is {report.mean_score:.4f}.")

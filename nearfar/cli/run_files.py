"""Runs and judgements as commands take them: TREC files, or Parquet tables by their ending; and the tie rules."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nearfar.eval import RankingResult


class TieRule(str, Enum):
    """How documents of equal score are ordered."""

    trec = "trec"
    rank = "rank"
    expected = "expected"
    pessimistic = "pessimistic"


Ties = Annotated[
    TieRule,
    typer.Option(
        help="Documents of equal score: larger id first (trec), as the run lists them (rank), the mean over all "
        "orders (expected), or the least favourable order (pessimistic)."
    ),
]
RelevanceLevel = Annotated[int, typer.Option(help="The smallest grade that counts as relevant.")]


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """A run: query id -> document id -> score."""
    from nearfar.data import load_parquet_run, load_trec_run

    return load_parquet_run(path) if path.suffix == ".parquet" else load_trec_run(path)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements: query id -> document id -> grade."""
    from nearfar.data import load_parquet_qrels, load_trec_qrels

    return load_parquet_qrels(path) if path.suffix == ".parquet" else load_trec_qrels(path)


def tie_sentence(result: RankingResult) -> str:
    """How many scores are tied, and what ordered them."""
    return f"{result.tie_rate:.1%} of the scores are tied (rule: {result.ties})"

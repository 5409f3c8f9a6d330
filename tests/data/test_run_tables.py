"""Runs and qrels in Parquet tables: what is read, and how faults are named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearfar.data import load_parquet_qrels, load_parquet_run
from nearfar.errors import DataFileError


def write(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_reads_a_run_and_qrels(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run.parquet", score=[0.5, 1, -2.5], query_id=["a", "b", "a"], doc_id=[7, 8, 9], rank=[1, 1, 2]
    )
    assert load_parquet_run(run) == {"a": {"7": 0.5, "9": -2.5}, "b": {"8": 1.0}}
    assert list(load_parquet_run(run)["a"]) == ["7", "9"]
    qrels = write(tmp_path / "qrels.parquet", query_id=[1, 1], doc_id=["x", "y"], grade=[0, 3])
    assert load_parquet_qrels(qrels) == {"1": {"x": 0, "y": 3}}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": ["a"], "doc_id": ["x"]}, "no column 'score'"),
        ({"query_id": [], "doc_id": [], "score": []}, "is empty"),
        ({"query_id": ["a", "a"], "doc_id": ["x", "x"], "score": [1.0, 2.0]}, "row 2: document 'x' comes twice"),
        ({"query_id": ["a", "b"], "doc_id": ["x", "x"], "score": [1.0, None]}, "row 2: the score must be a number"),
        ({"query_id": ["a"], "doc_id": ["x"], "score": [float("nan")]}, "row 1: the score must be a number"),
        ({"query_id": ["a"], "doc_id": ["x"], "score": ["high"]}, "found 'high'"),
        ({"query_id": [1.5], "doc_id": ["x"], "score": [1.0]}, "'query_id' must be a string or an integer"),
        ({"query_id": ["a"], "doc_id": [None], "score": [1.0]}, "'doc_id' must be a string or an integer"),
    ],
)
def test_faults_of_a_run_are_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        load_parquet_run(write(tmp_path / "run.parquet", **columns))


def test_grades_must_be_integers(tmp_path: Path) -> None:
    path = write(tmp_path / "qrels.parquet", query_id=["a"], doc_id=["x"], grade=[1.0])
    with pytest.raises(DataFileError, match=r"row 1: the relevance grade must be an integer, found 1\.0"):
        load_parquet_qrels(path)


def test_files_that_are_missing_or_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no such file"):
        load_parquet_run(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("a b c")
    with pytest.raises(DataFileError, match="not a whole Parquet file"):
        load_parquet_run(tmp_path / "text.parquet")

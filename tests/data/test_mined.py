"""Mined rows: what is told apart from plain pairs, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearfar.data import TrainingPairs, is_mined, load_mined, load_pairs, write_pairs
from nearfar.data.mined import MinedQuery, mined_table
from nearfar.errors import DataFileError

QUERIES = [
    MinedQuery("q1", ["a", "b"], [0, 1], ["x", "y"], [0.5, 0.25]),
    MinedQuery("q2", ["c"], [2], ["z", "x"], [0.0, 1.0]),
]


@pytest.mark.parametrize("mined_format", ["n-tuple", "triplet", "pair"])
@pytest.mark.parametrize("graded", [True, False])
def test_rows_come_back_as_a_dataset(tmp_path, mined_format, graded):
    queries = QUERIES if graded else [query._replace(grades=None) for query in QUERIES]
    table = mined_table(queries, mined_format, 2, graded)
    pq.write_table(table, tmp_path / "mined.parquet")
    assert is_mined(tmp_path / "mined.parquet")
    assert load_mined(tmp_path / "mined.parquet").to_list() == table.to_pylist()
    assert table.num_rows == {"n-tuple": 3, "triplet": 6, "pair": 7}[mined_format]


def test_fewer_negatives_give_fewer_triplets_and_pairs():
    short = [QUERIES[0]._replace(negatives=["x"], grades=[0.5])]
    assert mined_table(short, "triplet", 2, True)["label"].to_pylist() == [[1.0, 0.5]] * 2
    assert mined_table(short, "pair", 2, True)["label"].to_pylist() == [1.0, 1.0, 0.5]
    assert mined_table([], "n-tuple", 2, True).column_names[-2:] == ["negative_2", "label"]


def test_plain_pairs_are_not_mined(tmp_path):
    write_pairs(TrainingPairs(["q"], ["d"], ["7"]), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"query": ["q"], "document": ["d"], "label": [7]}), tmp_path / "numbered.parquet")
    for name in ("pairs", "numbered"):
        assert not is_mined(tmp_path / f"{name}.parquet")
        assert load_pairs(tmp_path / f"{name}.parquet").labels == ["7"]
    assert not is_mined(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": ["q"], "text": ["d"], "label": [1.0]}, "found: query, text, label"),
        ({"query": ["q"], "document": ["d"], "label": ["one"]}, "a label of numbers"),
        ({"query": pa.array([], "string"), "document": pa.array([], "string"), "label": pa.array([], "float")}, "rows"),
    ],
)
def test_other_files(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    with pytest.raises(DataFileError, match=message):
        load_mined(tmp_path / "other.parquet")


def test_no_file_and_no_parquet(tmp_path):
    (tmp_path / "text.parquet").write_text("text", encoding="utf-8")
    for read in (load_mined, is_mined):
        with pytest.raises(DataFileError, match="not a whole Parquet file"):
            read(tmp_path / "text.parquet")
        with pytest.raises(DataFileError, match="no such file"):
            read(tmp_path / "nowhere.parquet")

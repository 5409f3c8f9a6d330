from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nearfar.data import LabelledTexts, TrainingPairs, load_labelled, load_pairs, write_labelled, write_pairs
from nearfar.errors import DataFileError, InputError

ENDINGS = ("jsonl", "csv", "parquet", "jsonl.gz", "csv.gz")


def refused(load, path, content, line, words):
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=words) as caught:
        load(path)
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_integer_labels_and_other_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 3, "x": 1}\n{"text": "b", "label": "y"}\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx,label,text\r\n1,3,a\r\n\r\n2,y,b\r\n")
    table = pa.table({"label": [3, 4], "x": [1, 2], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.PARQUET")
    assert load_labelled(tmp_path / "a.jsonl") == LabelledTexts(["a", "b"], ["3", "y"])
    assert load_labelled(tmp_path / "a.csv") == LabelledTexts(["a", "b"], ["3", "y"])
    assert load_labelled(tmp_path / "a.PARQUET") == LabelledTexts(["a", "b"], ["3", "4"])


def test_dictionary_encoded_columns(tmp_path):
    table = pa.table({"text": ["a", "b"], "label": pa.array(["x", "x"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_labelled(tmp_path / "a.parquet").labels == ["x", "x"]


def test_quoted_fields_span_lines_and_keep_their_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,label\n"one\r\ntwo, ""three""",x\nb,y\n')
    assert load_labelled(tmp_path / "a.csv").texts == ['one\r\ntwo, "three"', "b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "b"}', "'label' is missing; found: text"),
        (b'{"label": "b"}', "'text' is missing; found: label"),
        (b'{"text": " ", "label": "x"}', "'text' is blank; give it a text or remove the line"),
        (b'{"text": "b", "label": 1.5}', "'label' must be a string or an integer, found 1.5"),
        (b'{"text": "b", "label": null}', "'label' must be a string or an integer, found None"),
        (b'{"text": "b", "label": ""}', "'label' is blank"),
        (b'{"text": 1, "label": "x"}', "'text' must be a string, found 1"),
        (b"text,label", "not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, line, words):
    start = b'{"text": "a", "label": "x"}\n\n'
    refused(load_labelled, tmp_path / "a.jsonl", start + line, 3, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"c", r"expected 2 columns \(text, label\), found 1"),
        (b"c,d,e", "found 3"),
        (b",d", "'text' is blank"),
        (b"c,", "'label' is blank"),
        (b'"open,d\nrest,x\n', "not CSV"),
        (b'"a"b,d', "not CSV"),
        (b"x" * 200_000 + b",d", "not CSV .* use JSONL for very long texts"),
        (b"\xff,d", "not UTF-8"),
    ],
)
def test_bad_csv_lines_are_named_by_the_line_on_which_the_row_starts(tmp_path, line, words):
    start = b'text,label\n"two\nlines",x\n'
    refused(load_labelled, tmp_path / "a.csv", start + line, 4, words)


def test_bad_parquet_rows_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    for column, words in (
        ({"text": ["a", None], "label": ["x", "y"]}, "row 2: 'text' must be a string, found None"),
        ({"text": ["a", " "], "label": ["x", "y"]}, "row 2: 'text' is blank; give it a text or remove the row"),
        ({"text": ["a", "b"], "label": ["x", None]}, "row 2: 'label' must be a string or an integer"),
    ):
        pq.write_table(pa.table(column), path)
        with pytest.raises(DataFileError, match=words):
            load_labelled(path)
    whole = path.read_bytes()
    refused(load_labelled, path, whole[:-20], None, "not a whole Parquet file")
    refused(load_labelled, path, b"", None, "not a whole Parquet file")


def test_missing_columns_name_those_found(tmp_path):
    refused(load_labelled, tmp_path / "a.csv", b"text,class\na,b\n", None, "no column 'label'; .* text, class")
    pq.write_table(pa.table({"body": ["a"], "label": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataFileError, match="no column 'text'; columns found: body, label"):
        load_labelled(tmp_path / "a.parquet")


def test_empty_missing_and_other_files_are_refused(tmp_path):
    refused(load_labelled, tmp_path / "a.jsonl", b"\n", None, "the file is empty; expected rows with text, label")
    refused(load_labelled, tmp_path / "a.csv", b"", None, "the file is empty")
    refused(load_labelled, tmp_path / "a.csv", b"text,label\n\n", None, "the file is empty")
    refused(load_pairs, tmp_path / "a.csv", b"query,document\n", None, "the file is empty")
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": []}), tmp_path / "a.parquet")
    with pytest.raises(DataFileError, match="the file is empty"):
        load_labelled(tmp_path / "a.parquet")
    refused(load_labelled, tmp_path / "a.xlsx", b"", None, "unknown kind of file '.xlsx'; use .jsonl, .csv")
    for ending in ENDINGS:
        with pytest.raises(DataFileError, match="no such file"):
            load_labelled(tmp_path / f"none.{ending}")


def test_pairs_without_labels_share_one_by_document(tmp_path):
    expected = TrainingPairs(["a", "b", "c"], ["x", "y", "x"], ["0", "1", "0"])
    (tmp_path / "p.csv").write_text("document,query\nx,a\ny,b\nx,c\n")
    (tmp_path / "p.jsonl").write_text(
        "\n".join(f'{{"query": "{q}", "document": "{d}"}}' for q, d in zip("abc", "xyx", strict=True))
    )
    pq.write_table(pa.table({"query": list("abc"), "document": list("xyx")}), tmp_path / "p.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        assert load_pairs(tmp_path / f"p.{ending}") == expected


def test_pairs_with_labels(tmp_path):
    pq.write_table(pa.table({"query": ["a"], "document": ["x"], "label": [7]}), tmp_path / "p.parquet")
    assert load_pairs(tmp_path / "p.parquet") == TrainingPairs(["a"], ["x"], ["7"])
    (tmp_path / "p.csv").write_text("query,document,label\na,x,l\n")
    assert load_pairs(tmp_path / "p.csv").labels == ["l"]


def test_labels_on_some_lines_only_are_refused(tmp_path):
    with_label, without = b'{"query": "a", "document": "b", "label": 1}', b'{"query": "a", "document": "b"}'
    path = tmp_path / "p.jsonl"
    refused(load_pairs, path, with_label + b"\n" + without, 2, "the label is missing here")
    refused(load_pairs, path, without + b"\n" + with_label, 2, "the label is new here")
    refused(load_pairs, path, b'{"query": "a"}', 1, "'document' is missing; found: query")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_could_not_be_read_back_is_not_written(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    with pytest.raises(InputError, match="no rows to write"):
        write_labelled(LabelledTexts([], []), path)
    with pytest.raises(DataFileError, match="row 2: 'text' is blank"):
        write_labelled(LabelledTexts(["a", ""], ["x", "x"]), path)
    with pytest.raises(DataFileError, match=r"row 1: 'document' holds '.ud800', half a character"):
        write_pairs(TrainingPairs(["a"], ["\ud800"], ["x"]), path)
    with pytest.raises(DataFileError, match="unknown kind of file"):
        write_labelled(LabelledTexts(["a"], ["x"]), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_gz_ending_is_compressed(tmp_path):
    write_labelled(LabelledTexts(["a"], ["x"]), tmp_path / "a.csv.gz")
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == b"text,label\r\na,x\r\n"


VALUES = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and "\0" not in text)
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(rows=ROWS, ending=st.sampled_from(ENDINGS))
@example(rows=[('"', "a\rb", ","), ("a\r\nb", "\u2028\n\nx", " pad ")], ending="csv")
def test_what_is_written_is_read_back(tmp_path, rows, ending):
    queries, documents, labels = map(list, zip(*rows, strict=True))
    write_pairs(TrainingPairs(queries, documents, labels), tmp_path / f"p.{ending}")
    assert load_pairs(tmp_path / f"p.{ending}") == TrainingPairs(queries, documents, labels)
    write_labelled(LabelledTexts(queries, labels), tmp_path / f"l.{ending}")
    assert load_labelled(tmp_path / f"l.{ending}") == LabelledTexts(queries, labels)

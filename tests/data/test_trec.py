from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nearfar.data import load_trec_qrels, load_trec_run, write_trec_qrels, write_trec_run
from nearfar.errors import DataFileError, InputError

RUN = "q1 Q0 d1 1 2.5 tag\nq1 Q0 d2 2 1e-3 tag\n"
QRELS = "q1 0 d1 1\nq2 0 d2 -1\n"


def refused(load, path, text, line, words):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataFileError, match=words) as caught:
        load(path)
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_run_with_any_white_space_line_ends_and_a_mark(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(b"\xef\xbb\xbf" + RUN.replace("\n", "\r\n\r\n").replace(" ", " \t").encode())
    assert load_trec_run(path) == {"q1": {"d1": 2.5, "d2": 0.001}}


def test_qrels(tmp_path):
    path = tmp_path / "qrels"
    path.write_text(QRELS + "q1 0 d1 1\n")  # a repeated line adds nothing
    assert load_trec_qrels(path) == {"q1": {"d1": 1}, "q2": {"d2": -1}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q1 Q0 d3 3 0.5", r"expected 6 columns \(query Q0 document rank score tag\), found 5"),
        ("q1 Q0 d3 3 0.5 my tag", "found 7"),
        ("q1 Q0 d3 3 nan tag", "score must be a number, found 'nan'"),
        ("q1 Q0 d3 3 high tag", "score must be a number, found 'high'"),
        ("q1 Q0 d3 3 1_0 tag", "score must be a number, found '1_0'"),
        ("q1 Q0 d2 3 0.5 tag", "document 'd2' comes twice for query 'q1'"),
        (b"q1 Q0 \xe9 3 0.5 tag", "not UTF-8"),
    ],
)
def test_bad_run_lines_are_named(tmp_path, line, words):
    bad = line if isinstance(line, bytes) else line.encode()
    refused(load_trec_run, tmp_path / "run", RUN.encode() + b"\n" + bad, 4, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q1 d3 1", r"expected 4 columns \(query 0 document grade\), found 3"),
        ("query-id 0 corpus-id score", "grade must be an integer, found 'score'"),
        ("q1 0 d3 1.5", "grade must be an integer, found '1.5'"),
        ("q1 0 d3 " + "9" * 5000, "grade must be an integer"),
        ("q1 0 d1 0", "query 'q1', document 'd1' has grade 0, and 1 further up"),
    ],
)
def test_bad_qrels_lines_are_named(tmp_path, line, words):
    refused(load_trec_qrels, tmp_path / "qrels", QRELS + line, 3, words)


@pytest.mark.parametrize("load", [load_trec_run, load_trec_qrels])
def test_empty_and_missing_files_are_refused(tmp_path, load):
    refused(load, tmp_path / "x", "", None, "empty")
    refused(load, tmp_path / "x", "\n \n", None, "empty")
    with pytest.raises(DataFileError, match="no such file"):
        load(tmp_path / "none")


def test_runs_are_written_in_the_order_of_trec_eval(tmp_path):
    path = tmp_path / "run"
    write_trec_run({"q": {"a": 0.5, "c": 0.5, "b": 0.5, "top": 2.0, "é": 0.5}}, path, tag="me")
    assert path.read_text(encoding="utf-8").splitlines() == [
        "q Q0 top 1 2.0 me",
        "q Q0 é 2 0.5 me",
        "q Q0 c 3 0.5 me",
        "q Q0 b 4 0.5 me",
        "q Q0 a 5 0.5 me",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_written_rank_is_the_rank_trec_eval_gives(tmp_path, seed):
    rng = np.random.default_rng(seed)
    scores = {f"d{number}": float(rng.integers(0, 4)) for number in range(30)}  # many ties
    write_trec_run({"q": scores}, tmp_path / "run")
    for line in (tmp_path / "run").read_text().splitlines():
        _, _, document, rank, _, _ = line.split()
        measured = pytrec_eval.RelevanceEvaluator({"q": {document: 1}}, {"recip_rank"}).evaluate({"q": scores})
        assert measured["q"]["recip_rank"] == pytest.approx(1 / int(rank))


def test_float32_scores_keep_their_value(tmp_path):
    score = np.float32(0.1)
    write_trec_run({"q": {"d": score}}, tmp_path / "run")
    assert load_trec_run(tmp_path / "run") == {"q": {"d": float(score)}}


@pytest.mark.parametrize("bad", ["", "a b", "a\tb", "a\nb", "a\x0bb", "\ufeffa"])
def test_ids_with_white_space_are_not_written(tmp_path, bad):
    for run in ({bad: {"d": 1.0}}, {"q": {bad: 1.0}}):
        with pytest.raises(InputError, match="which a TREC file cannot store"):
            write_trec_run(run, tmp_path / "run")
    for qrels in ({bad: {"d": 1}}, {"q": {bad: 1}}):
        with pytest.raises(InputError, match="which a TREC file cannot store"):
            write_trec_qrels(qrels, tmp_path / "qrels")
    with pytest.raises(InputError, match="tag"):
        write_trec_run({"q": {"d": 1.0}}, tmp_path / "run", tag=bad)
    assert not list(tmp_path.iterdir())


def test_nan_and_nothing_are_not_written(tmp_path):
    with pytest.raises(InputError, match="'d' for query 'q' is NaN"):
        write_trec_run({"q": {"a": 1.0, "d": math.nan}}, tmp_path / "run")
    for empty in ({}, {"q": {}}):
        with pytest.raises(InputError, match="empty"):
            write_trec_run(empty, tmp_path / "run")
        with pytest.raises(InputError, match="empty"):
            write_trec_qrels(empty, tmp_path / "qrels")
    assert not list(tmp_path.iterdir())


IDS = st.text(min_size=1, max_size=8).filter(lambda id_: not set(id_) & set(" \t\n\r\x0b\x0c\ufeff"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    run=st.dictionaries(
        IDS, st.dictionaries(IDS, st.floats(allow_nan=False), min_size=1, max_size=5), min_size=1, max_size=4
    ),
    name=st.sampled_from(["run", "run.gz"]),
)
@example(run={"\xa0": {"\x85": 0.1 + 0.2, "\u2028": -0.0, "\x1c": 5e-324}}, name="run")
def test_a_written_run_is_read_back(tmp_path, run, name):
    write_trec_run(run, tmp_path / name)
    assert load_trec_run(tmp_path / name) == run


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    st.dictionaries(
        IDS,
        st.dictionaries(IDS, st.integers(-(10**9), 10**9), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_written_qrels_are_read_back(tmp_path, qrels):
    write_trec_qrels(qrels, tmp_path / "qrels")
    assert load_trec_qrels(tmp_path / "qrels") == qrels

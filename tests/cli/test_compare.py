"""nearfar compare: its table, its words, its JSON, and bad input in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nearfar.cli import run
from nearfar.data import load_trec_qrels, load_trec_run, write_trec_qrels, write_trec_run
from nearfar.eval import compare_runs, evaluate_run

QUERIES = [f"q{i}" for i in range(40)]


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    write_trec_qrels({q: {q.replace("q", "d"): 1} for q in QUERIES}, tmp_path / "qrels.txt")
    for name, bonus in (("old", 0.3), ("same", 0.3), ("new", 0.9)):
        scores = {
            q: {f"d{j}": float(rng.random() + bonus * (q == f"q{j}")) for j in range(len(QUERIES))} for q in QUERIES
        }
        write_trec_run(scores, tmp_path / f"{name}.run")
    (tmp_path / "groups.tsv").write_text(
        "query-id\tgroup\n" + "".join(f"{q}\t{'even' if i % 2 == 0 else 'odd'}\n" for i, q in enumerate(QUERIES))
    )
    (tmp_path / "clusters.tsv").write_text("".join(f"{q}\tc{i // 4}\n" for i, q in enumerate(QUERIES)))
    return tmp_path


def arguments(files, *words, runs=("old", "new")):
    paths = [str(files / f"{name}.run") for name in runs]
    return ["compare", *paths, "--qrels", str(files / "qrels.txt"), "--permutations", "500", *map(str, words)]


def spoken(capsys, words):
    capsys.readouterr()
    assert run(words) == 0
    return capsys.readouterr().out


def fails(capsys, words):
    capsys.readouterr()
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_table_and_verdict(capsys, files):
    text = spoken(capsys, arguments(files, "--metric", "RR", "--metric", "nDCG@10", runs=("old", "same", "new")))
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["metric", "run", "baseline"]
    assert sum(line.startswith(("RR ", "nDCG@10 ")) for line in lines) == 4
    assert "RR: new.run is better than old.run (" in text
    assert "RR: no clear difference between same.run and old.run (" in text
    assert "Holm's correction for 4 tests" in text


def test_json_is_what_compare_runs_says(capsys, files):
    words = arguments(files, "--metric", "RR", "--by", files / "groups.tsv", "--clusters", files / "clusters.tsv")
    found = json.loads(spoken(capsys, [*words, "--json"]))
    qrels = load_trec_qrels(files / "qrels.txt")
    results = {n: evaluate_run(load_trec_run(files / n), qrels, ["RR"]) for n in ("old.run", "new.run")}
    wanted = compare_runs(
        results,
        baseline="old.run",
        permutations=500,
        groups={q: "even" if i % 2 == 0 else "odd" for i, q in enumerate(QUERIES)},
        clusters={q: f"c{i // 4}" for i, q in enumerate(QUERIES)},
    )
    assert found.pop("missing") == {"old.run": [], "new.run": []}
    assert (found.pop("ties"), found.pop("tie_rate")) == ("trec", {"old.run": 0.0, "new.run": 0.0})
    assert found == json.loads(wanted.to_json())
    assert [row["group"] for row in found["group_rows"]] == ["even", "odd"]
    assert found["rows"][0]["units"] == 10


def test_all_pairs_baseline_test_and_correction(capsys, files):
    runs = ("old", "same", "new")
    every = json.loads(spoken(capsys, arguments(files, "--metric", "RR", "--all-pairs", "--json", runs=runs)))
    assert len(every["rows"]) == 3
    words = ["--metric", "RR", "--baseline", "new.run", "--test", "t", "--correction", "none", "--json"]
    chosen = json.loads(spoken(capsys, arguments(files, *words, runs=runs)))
    assert {row["baseline"] for row in chosen["rows"]} == {"new.run"}
    assert all(row["p_value"] == row["p_t"] for row in chosen["rows"])


def test_runs_of_one_name_go_by_their_paths(capsys, files):
    (files / "other").mkdir()
    (files / "other" / "old.run").write_text((files / "new.run").read_text())
    found = json.loads(spoken(capsys, arguments(files, "--metric", "RR", "--json", runs=("old", "other/old"))))
    assert found["rows"][0]["run"] == str(files / "other" / "old.run")


def test_queries_that_a_run_leaves_out_are_told(capsys, files):
    scores = load_trec_run(files / "new.run")
    del scores["q3"]
    write_trec_run(scores, files / "new.run")
    assert "new.run answers 1 of the queries not at all" in spoken(capsys, arguments(files, "--metric", "RR"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "nDGC@10"], "nDGC"),
        (["--baseline", "newer.run"], "newer.run"),
        (["--baseline", "new.run", "--all-pairs"], "either --all-pairs or --baseline"),
        (["--test", "wilcoxon"], "wilcoxon"),
        (["--correction", "tukey"], "tukey"),
        (["--confidence", "95"], "confidence is 95"),
        (["--permutations", "3"], "permutations is 3"),
        (["--by", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_bad_options_in_one_line(capsys, files, words, said):
    assert said in fails(capsys, arguments(files, *words))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("q0 even\n", "line 1: expected 2 columns"),
        ("q0\teven\nq0\todd\n", "line 2: query 'q0'"),
        ("q0\teven\n", "39 of 40 queries have no group"),
    ],
)
def test_bad_groups_in_one_line(capsys, files, content, said):
    (files / "bad.tsv").write_text(content)
    assert said in fails(capsys, arguments(files, "--metric", "RR", "--by", files / "bad.tsv"))


def test_bad_runs_in_one_line(capsys, files):
    assert "at least two runs" in fails(capsys, arguments(files, runs=("old",)))
    assert "given twice" in fails(capsys, arguments(files, runs=("old", "old")))
    assert "missing.run" in fails(capsys, arguments(files, runs=("old", "missing")))
    (files / "other.run").write_text("x Q0 d1 1 0.5 tag\n")
    assert "share no query" in fails(capsys, arguments(files, runs=("old", "other")))
    assert "qrels" in fails(capsys, ["compare", "a.run", "b.run"])

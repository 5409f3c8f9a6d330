"""What nearfar evaluate and compare read, Parquet tables and built indexes among it, and the rules they score by."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearfar.cli import run
from nearfar.data import Document, RetrievalDataset, demo_model, write_beir, write_trec_qrels, write_trec_run
from nearfar.eval import evaluate_run
from nearfar.retrieval import Retriever

RUN = {
    "q1": {"b": 0.5, "a": 0.5, "c": 0.5, "d": 0.25},
    "q2": {"b": 0.9, "a": 0.5, "d": 0.1},
    "q3": {"d": 0.5, "c": 0.5},
}
BETTER = {"q1": {"b": 0.9, "a": 0.5}, "q2": {"a": 0.5, "b": 0.5}, "q3": {"c": 1.0}}
QRELS = {"q1": {"b": 1}, "q2": {"a": 2, "b": 1}, "q3": {"c": 2, "d": 0}}
METRICS = ["RR", "nDCG@10"]


def write_table(path, nested, column):
    rows = [(query, document, value) for query, row in nested.items() for document, value in row.items()]
    queries, documents, values = zip(*rows, strict=True)
    pq.write_table(pa.table({"query_id": queries, "doc_id": documents, column: values}), path)


@pytest.fixture
def files(tmp_path):
    for name, scores in (("old", RUN), ("new", BETTER)):
        write_table(tmp_path / f"{name}.parquet", scores, "score")
        write_trec_run(scores, tmp_path / f"{name}.run")
    write_table(tmp_path / "qrels.parquet", QRELS, "grade")
    write_trec_qrels(QRELS, tmp_path / "qrels.txt")
    return tmp_path


def spoken(capsys, *words):
    capsys.readouterr()
    assert run([*map(str, words)]) == 0
    return capsys.readouterr().out


def fails(capsys, *words):
    capsys.readouterr()
    assert run([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def asked(metrics=METRICS):
    return [word for metric in metrics for word in ("--metric", metric)]


@pytest.mark.parametrize("ties", ["trec", "rank", "expected", "pessimistic"])
@pytest.mark.parametrize("ending", ["parquet", "run"])
def test_evaluate_reads_both_kinds_by_every_tie_rule(capsys, files, ending, ties):
    qrels = files / ("qrels.parquet" if ending == "parquet" else "qrels.txt")
    words = ["evaluate", "--run", files / f"old.{ending}", "--qrels", qrels, *asked(), "--ties", ties]
    found = json.loads(spoken(capsys, *words, "--json"))
    # A TREC file is written with the larger id first among equals, a table keeps the order of its rows.
    listed = RUN if ending == "parquet" else {q: dict(sorted(r.items(), reverse=True)) for q, r in RUN.items()}
    listed = {q: dict(sorted(r.items(), key=lambda item: -item[1])) for q, r in listed.items()}
    wanted = evaluate_run(listed, QRELS, METRICS, ties=ties)
    assert found["mean"] == wanted.mean
    assert (found["ties"], found["tie_rate"]) == (ties, wanted.tie_rate)
    assert f"{5 / 9:.1%} of the scores are tied (rule: {ties})" in spoken(capsys, *words)


def test_the_rules_differ_on_these_ties(capsys, files):
    words = ["evaluate", "--run", files / "old.parquet", "--qrels", files / "qrels.parquet", "--metric", "RR", "--json"]
    means = {
        ties: json.loads(spoken(capsys, *words, "--ties", ties))["mean"]["RR"]
        for ties in ("trec", "rank", "expected", "pessimistic")
    }
    assert len(set(means.values())) == 4
    assert means["pessimistic"] == min(means.values()) < max(means.values())


def test_relevance_level(capsys, files):
    words = ["evaluate", "--run", files / "old.run", "--qrels", files / "qrels.txt", "--metric", "RR", "--json"]
    found = json.loads(spoken(capsys, *words, "--relevance-level", 2))
    assert found["mean"] == evaluate_run(RUN, QRELS, ["RR"], relevance_level=2).mean
    assert (found["relevance_level"], found["queries"]) == (2, 2)


def test_compare_reads_tables_and_tells_the_ties_of_each(capsys, files):
    words = ["compare", files / "old.parquet", files / "new.run", "--qrels", files / "qrels.parquet", *asked()]
    words += ["--ties", "pessimistic", "--permutations", 200]
    found = json.loads(spoken(capsys, *words, "--json"))
    assert found["ties"] == "pessimistic"
    assert found["tie_rate"] == {"old.parquet": 5 / 9, "new.run": 2 / 5}
    old, new = (evaluate_run(scores, QRELS, METRICS, ties="pessimistic").mean for scores in (RUN, BETTER))
    assert [(row["baseline_mean"], row["mean"]) for row in found["rows"]] == [(old[m], new[m]) for m in METRICS]
    text = spoken(capsys, *words)
    assert "old.parquet: 55.6% of the scores are tied (rule: pessimistic)." in text
    assert "new.run: 40.0% of the scores are tied (rule: pessimistic)." in text


def test_bad_tables_and_rules_in_one_line(capsys, files):
    qrels = ["--qrels", files / "qrels.parquet"]
    assert "lucky" in fails(capsys, "evaluate", "--run", files / "old.parquet", *qrels, "--ties", "lucky")
    assert "no column 'score'" in fails(capsys, "evaluate", "--run", files / "qrels.parquet", *qrels)
    (files / "text.parquet").write_text("q1 Q0 a 1 0.5 tag\n")
    assert "not a whole Parquet file" in fails(capsys, "evaluate", "--run", files / "text.parquet", *qrels)
    assert "ERR" in fails(
        capsys, "evaluate", "--run", files / "old.parquet", *qrels, "--metric", "ERR", "--ties", "expected"
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beir")
    texts = [f"{colour} {thing} number {number}" for colour in ("red", "green", "blue", "white", "black")
             for thing in ("house", "boat", "dog", "river", "tree") for number in range(45)]  # fmt: skip
    corpus = {f"d{i}": Document(f"d{i}", text) for i, text in enumerate(texts)}
    queries = {f"q{i}": texts[i] for i in range(0, len(texts), 60)}
    write_beir(RetrievalDataset(corpus, queries, {q: {q.replace("q", "d"): 1} for q in queries}, "toys"), folder)
    demo_model().save(str(folder / "model"))
    with Retriever.create(folder / "index", str(folder / "model"), factory="ivf") as retriever:
        retriever.index_documents(corpus.values())
    return folder


@pytest.mark.slow
def test_a_built_index_with_its_frontier(capsys, searched, tmp_path):
    words = ["evaluate", "--data", searched, "--index", searched / "index", "--metric", "R@1", "--frontier"]
    found = json.loads(spoken(capsys, *words, "--report", tmp_path, "--json"))
    assert found[str(searched / "index")]["R@1"] == 1.0
    assert found["frontier"][-1]["recall"] == 1.0
    assert found["frontier"][0]["setting"] == "nprobe=1"
    (model,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [p["setting"] for p in model["frontier"]] == [p["setting"] for p in found["frontier"]]
    assert "Recall and latency" in (tmp_path / "report.md").read_text()
    text = spoken(capsys, *words, "--ties", "pessimistic")
    assert "recall@10" in text
    assert "(rule: pessimistic)" in text


def test_an_index_in_the_wrong_place_in_one_line(capsys, searched):
    data = ["evaluate", "--data", searched]
    assert "--index brings its own model" in fails(capsys, *data, "--index", searched / "index", "--model", "m")
    assert "--frontier measures a built index" in fails(capsys, *data, "--model", "m", "--frontier")
    assert "--index brings its own model" in fails(capsys, "evaluate", "--index", searched / "index")

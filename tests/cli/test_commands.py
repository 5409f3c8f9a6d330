"""Commands do what their help says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nearfar.cli import run
from nearfar.data import (
    Document,
    LabelledTexts,
    RetrievalDataset,
    TrainingPairs,
    demo_model,
    write_beir,
    write_labelled,
    write_pairs,
    write_trec_qrels,
    write_trec_run,
)

WORDS = ["hand", "foot", "eye", "ear", "nose", "heart", "lung", "liver"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    demo_model().save_pretrained(str(folder / "model"))
    corpus = {word: Document(word, f"disorder of the {word}") for word in WORDS}
    queries = {f"q-{word}": f"my {word} hurts" for word in WORDS}
    dataset = RetrievalDataset(corpus, queries, {f"q-{word}": {word: 1} for word in WORDS}, "tiny")
    write_beir(dataset, folder / "beir")
    pairs = TrainingPairs([f"sore {w}" for w in WORDS], [f"disorder of the {w}" for w in WORDS], WORDS)
    write_pairs(pairs, folder / "pairs.jsonl")
    texts = [f"{how} {word}" for word in WORDS for how in ("a", "my", "one", "the", "his")]
    write_labelled(LabelledTexts(texts, [w for w in WORDS for _ in range(5)]), folder / "texts.csv")
    return folder


def result(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_index_search_evaluate(capsys, files, tmp_path):
    trained = result(
        capsys, "train", files / "pairs.jsonl", "--model", files / "model", "--output", tmp_path / "run",
        "--loss", "circle", "--option", "gamma=32", "--epochs", 2, "--batch-size", 4, "--learning-rate", 0.01,
        "--dev", files / "beir", "--dev-split", "test",
    )  # fmt: skip
    assert "tiny" not in trained["model"]
    assert 0 <= next(iter(trained["metrics"].values())) <= 1

    index = tmp_path / "index"
    built = result(capsys, "index", "build", files / "beir", index, "--model", tmp_path / "run" / "model")
    assert json.dumps(built)
    assert result(capsys, "index", "verify", index)["vectors"] == len(WORDS)
    assert result(capsys, "index", "info", index)
    found = result(capsys, "search", index, "liver disorder", "--k", 3)
    assert [len(found["hits"]), found["hits"][0]["id"]] == [3, "liver"]

    means = result(
        capsys, "evaluate", "--data", files / "beir", "--model", tmp_path / "run" / "model",
        "--baseline", files / "model", "--texts", files / "texts.csv", "--report", tmp_path / "report",
    )  # fmt: skip
    assert len(means) == 2
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "report.md"}


def test_labelled_texts_train_as_well(capsys, files, tmp_path):
    trained = result(
        capsys, "train", files / "texts.csv", "--model", files / "model", "--output", tmp_path / "run",
        "--loss", "nbc-softmax", "--batch-size", 8, "--learning-rate", 0.01,
    )  # fmt: skip
    assert trained["metrics"] == {}


def test_evaluate_a_run(capsys, tmp_path):
    write_trec_run({"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": 1.0}}, tmp_path / "a.run")
    write_trec_qrels({"q1": {"b": 1}, "q2": {"b": 1}, "q3": {"b": 1}}, tmp_path / "qrels.txt")
    found = result(capsys, "evaluate", "--run", tmp_path / "a.run", "--qrels", tmp_path / "qrels.txt", "--metric", "RR")
    assert found == {
        "mean": {"RR": pytest.approx(0.5 / 3)},
        "queries": 3,
        "missing": ["q3"],
        "ties": "trec",
        "tie_rate": 0.0,
        "relevance_level": 1,
    }


def test_losses_lists_the_registry(capsys):
    listed = result(capsys, "losses")
    assert listed["circle"]["options"]["gamma"] == 80
    assert run(["losses"]) == 0
    assert "arxiv.org" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "train", "search", "evaluate", "losses", "index build", "index info"])
def test_every_help_shows_an_example(capsys, command):
    assert run([*command.split(), "--help"]) == 0
    assert f"nearfar {command}" in " ".join(capsys.readouterr().out.split())


def test_tables_are_for_people(capsys, files, tmp_path):
    index = tmp_path / "index"
    assert run(["index", "build", str(files / "beir"), str(index), "--model", str(files / "model")]) == 0
    assert run(["search", str(index), "liver [bold]"]) == 0
    assert "disorder of the liver" in capsys.readouterr().out


def test_the_console_script_ends_with_the_exit_code():
    code = "from nearfar.cli import main; main(['search'])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr

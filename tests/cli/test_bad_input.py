"""Bad input ends in one line on standard error and exit code 2, never in a traceback."""

from __future__ import annotations

import json

import pytest

from nearfar.cli import run
from nearfar.data import Document, RetrievalDataset, demo_model, write_beir


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    demo_model().save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def beir(tmp_path):
    corpus = {f"d{i}": Document(f"d{i}", text) for i, text in enumerate(["tremor", "blue eyes", "tall stature"])}
    dataset = RetrievalDataset(corpus, {"q": "shaking hands"}, {"q": {"d0": 1}}, "tiny")
    write_beir(dataset, tmp_path / "beir")
    return tmp_path / "beir"


def fails(capsys, *words):
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_missing_folder(capsys, tmp_path):
    message = fails(capsys, "evaluate", "--data", tmp_path / "nowhere", "--model", "x")
    assert "nowhere" in message


def test_a_corpus_line_that_is_not_json_names_its_line(capsys, beir, model_folder, tmp_path):
    with (beir / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{not json\n")
    message = fails(capsys, "index", "build", beir, tmp_path / "index", "--model", model_folder)
    assert "line 4" in message


def test_qrels_that_name_unknown_documents(capsys, beir, model_folder):
    with (beir / "qrels" / "test.tsv").open("a", encoding="utf-8") as stream:
        stream.write("q\tghost\t1\n")
    assert "ghost" in fails(capsys, "evaluate", "--data", beir, "--model", model_folder)


def test_empty_corpus(capsys, beir, model_folder, tmp_path):
    (beir / "corpus.jsonl").write_text("", encoding="utf-8")
    message = fails(capsys, "index", "build", beir, tmp_path / "index", "--model", model_folder)
    assert "corpus.jsonl" in message


def test_an_unknown_loss_suggests_near_names(capsys, tmp_path, model_folder):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"query": "a", "document": "b"}) + "\n", encoding="utf-8")
    message = fails(capsys, "train", pairs, "--model", model_folder, "--loss", "circel", "--output", tmp_path / "run")
    assert "did you mean circle" in message


def test_an_index_opened_with_another_model(capsys, beir, model_folder, tmp_path):
    import torch

    other = demo_model()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    other.save_pretrained(str(tmp_path / "other"))
    assert run(["index", "build", str(beir), str(tmp_path / "index"), "--model", model_folder]) == 0
    message = fails(capsys, "search", tmp_path / "index", "hands", "--model", tmp_path / "other")
    assert "model" in message


def test_a_truncated_index_file(capsys, beir, model_folder, tmp_path):
    index = tmp_path / "index"
    assert run(["index", "build", str(beir), str(index), "--model", model_folder]) == 0
    file = max((p for p in index.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])
    assert file.name in fails(capsys, "search", index, "hands", "--model", model_folder)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["search"],
        ["search", "somewhere", "hello", "--k", "many"],
        ["train", "x.jsonl", "--model", "m", "--output", "o", "--option", "gamma"],
        ["evaluate"],
        ["evaluate", "--run", "missing.run", "--qrels", "missing.qrels"],
    ],
)
def test_bad_words(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, *words)


def test_a_model_that_does_not_exist(capsys, beir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no-such-model" in fails(capsys, "evaluate", "--data", beir, "--model", tmp_path / "no-such-model")


def test_a_demo_never_clears_a_folder_it_did_not_make(capsys, tmp_path):
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    assert "other files" in fails(capsys, "demo", "--output", tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_full_disk_is_one_line(capsys, beir, model_folder, tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr(os, "fsync", full)
    assert "space" in fails(capsys, "index", "build", beir, tmp_path / "index", "--model", model_folder).lower()

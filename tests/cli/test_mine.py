"""``nearfar mine``: what it writes, and how it fails."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch

from nearfar.cli import run
from nearfar.data import Document, RetrievalDataset, TrainingPairs, demo_model, minilm_model, write_beir, write_pairs

WORDS = ["hand", "foot", "eye", "ear", "nose", "heart", "lung", "liver"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    demo_model().save_pretrained(str(folder / "model"))
    corpus = {word: Document(word, f"disorder of the {word}") for word in WORDS}
    queries = {f"q-{word}": f"my {word} hurts" for word in WORDS}
    dataset = RetrievalDataset(corpus, queries, {f"q-{word}": {word: 1} for word in WORDS}, "tiny")
    write_beir(dataset, folder / "beir", split="train")
    write_pairs(TrainingPairs([f"sore {w}" for w in WORDS], [f"disorder of the {w}" for w in WORDS], WORDS),
                folder / "pairs.jsonl")  # fmt: skip
    assert run(["index", "build", str(folder / "beir"), str(folder / "index"), "--model", str(folder / "model")]) == 0
    return folder


def mine(files, *words, pairs="pairs.jsonl"):
    return run(
        ["mine", str(files / pairs), str(files / "index"), "--model", str(files / "model"), *map(str, words), "--json"]
    )


def mined(capsys, *arguments, **options):
    capsys.readouterr()
    assert mine(*arguments, **options) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *words):
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(["mine", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("pairs", ["pairs.jsonl", "beir"])
def test_mined_rows_train(capsys, files, tmp_path, pairs):
    output = tmp_path / "mined.parquet"
    report = mined(capsys, files, "--output", output, "--num-negatives", 2, "--no-margin", "--graded", pairs=pairs)
    assert [report["rows"], report["negatives"], report["path"]] == [8, 16, str(output)]
    for row in pq.read_table(output).to_pylist():
        assert row["document"].split()[-1] in row["query"]
        assert row["document"] not in (row["negative_1"], row["negative_2"])
    assert mined(capsys, files, "--output", output, "--num-negatives", 2, "--no-margin", "--graded", pairs=pairs)[
        "reused"
    ]
    words = ["--model", str(files / "model"), "--loss", "bixse", "--output", str(tmp_path / "run")]
    assert run(["train", str(output), *words, "--batch-size", "4", "--json"]) == 0


def test_every_option_reaches_the_miner(capsys, files, tmp_path):
    options = {
        "--range-min": 1, "--range-max": 6, "--relative-margin": 0.01, "--absolute-margin": -1,
        "--positive-percentile": 100, "--positive-quantile": 0.5, "--max-score": 0.99, "--min-score": -0.99,
        "--duplicate-similarity": 0.9999, "--format": "pair", "--sampling": "softmax", "--temperature": 0.1,
        "--short": "fill", "--seed": 3, "--batch-size": 2, "--num-negatives": 1,
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    report = mined(capsys, files, "--output", tmp_path / "all.parquet", *words)
    assert pq.read_table(tmp_path / "all.parquet").column_names == ["query", "document", "label"]
    assert report["rows"] == report["negatives"] + report["pairs"] - report["dropped"]


def test_a_cross_encoder_judges(capsys, files, tmp_path):
    from sentence_transformers import CrossEncoder

    minilm_model().save_pretrained(str(tmp_path / "minilm"))
    CrossEncoder(str(tmp_path / "minilm"), num_labels=1, device="cpu").save_pretrained(str(tmp_path / "judge"))
    words = ["--judge", tmp_path / "judge", "--graded", "--no-margin", "--num-negatives", 1, "--range-max", 2]
    assert mined(capsys, files, "--output", tmp_path / "judged.parquet", *words)["rows"] == 8
    assert mined(capsys, files, "--output", tmp_path / "judged.parquet", *words)["reused"]


def test_people_read_a_table(capsys, files, tmp_path):
    words = ["--model", str(files / "model"), "--output", str(tmp_path / "m.parquet"), "--no-margin"]
    assert run(["mine", str(files / "pairs.jsonl"), str(files / "index"), *words]) == 0
    shown = capsys.readouterr().out
    assert "taken away: positive" in shown
    assert "8 rows" in shown


def test_interrupting_keeps_what_was_mined(capsys, files, tmp_path, monkeypatch):
    from nearfar.retrieval import mining

    write = mining.PartFolder.write

    def then_ctrl_c(self, number, table, summary):
        write(self, number, table, summary)
        raise KeyboardInterrupt

    output = tmp_path / "mined.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(mining.PartFolder, "write", then_ctrl_c)
        assert mine(files, "--output", output, "--no-margin") == 130
    assert not output.exists()
    with monkeypatch.context() as patched:
        patched.setattr(mining.PartFolder, "write", None)  # all parts are there
        assert mined(capsys, files, "--output", output, "--no-margin")["rows"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["mined.parquet"]


class TestBadInput:
    """One line and exit code 2."""

    def test_missing_files(self, capsys, files, tmp_path):
        words = ["--model", files / "model", "--output", tmp_path / "m.parquet"]
        assert "nowhere.jsonl" in fails(capsys, tmp_path / "nowhere.jsonl", files / "index", *words)
        assert "nowhere" in fails(capsys, files / "pairs.jsonl", tmp_path / "nowhere", *words)

    def test_a_model_that_did_not_fill_the_index(self, capsys, files, tmp_path):
        other = demo_model()
        with torch.no_grad():
            next(other.parameters())[0, 0] += 1
        other.save_pretrained(str(tmp_path / "other"))
        words = ["--model", tmp_path / "other", "--output", tmp_path / "m.parquet"]
        message = fails(capsys, files / "pairs.jsonl", files / "index", *words)
        assert "different: weights" in message
        assert not (tmp_path / "m.parquet").exists()

    def test_empty_pairs(self, capsys, files, tmp_path):
        (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
        words = ["--model", files / "model", "--output", tmp_path / "m.parquet"]
        assert "empty.jsonl" in fails(capsys, tmp_path / "empty.jsonl", files / "index", *words)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--range-max", 3], "range_max=3"),
            (["--num-negatives", 0], "num_negatives=0"),
            (["--num-negatives", 20], "8 documents"),
            (["--short", "keep"], "n-tuples"),
            (["--sampling", "tops"], "tops"),
            (["--format", "quadruple"], "quadruple"),
            (["--max-score", -1], "no query has negatives left"),
            (["--positive-percentile", 200], "positive_percentile=200"),
            (["--judge", "no/such/judge"], "no cross-encoder"),
        ],
    )
    def test_options(self, capsys, files, tmp_path, monkeypatch, options, message):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        words = [files / "pairs.jsonl", files / "index", "--model", files / "model", "--output", tmp_path / "m.parquet"]
        assert message in fails(capsys, *words, *options)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["file/m.parquet", "folder.parquet", "m.csv", "foreign.parquet"])
    def test_an_output_that_cannot_be_written(self, capsys, files, tmp_path, name):
        (tmp_path / "file").write_text("", encoding="utf-8")
        (tmp_path / "foreign.parquet").write_text("mine", encoding="utf-8")
        (tmp_path / "folder.parquet").mkdir()
        words = [files / "pairs.jsonl", files / "index", "--model", files / "model", "--output", tmp_path / name]
        assert str(tmp_path / name).split("/m.parquet")[0] in fails(capsys, *words)

    def test_a_full_disk(self, capsys, files, tmp_path, monkeypatch):
        import errno
        import os

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

        words = ["--model", files / "model", "--output", tmp_path / "m.parquet"]
        monkeypatch.setattr(os, "fsync", full)
        assert "space" in fails(capsys, files / "pairs.jsonl", files / "index", *words).lower()
        assert not (tmp_path / "m.parquet").exists()


def test_help_shows_an_example(capsys):
    assert run(["mine", "--help"]) == 0
    assert "nearfar mine pairs.jsonl" in " ".join(capsys.readouterr().out.split())

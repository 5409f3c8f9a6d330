"""Gates of nearfar evaluate: exit code 1 and a line each; bad input stays exit code 2."""

from __future__ import annotations

import json

import pytest

from nearfar.cli import run
from nearfar.data import Document, RetrievalDataset, demo_model, write_beir, write_trec_qrels, write_trec_run


@pytest.fixture
def files(tmp_path):
    qrels = {f"q{i}": {"a": 1} for i in range(10)}
    write_trec_qrels(qrels, tmp_path / "qrels.txt")
    for name, right in (("good", 8), ("bad", 5)):
        answers = {q: {"a": 2.0 if i < right else 0.0, "b": 1.0} for i, q in enumerate(qrels)}
        write_trec_run(answers, tmp_path / f"{name}.run")
    return tmp_path


def command(files, name, *words):
    return ["evaluate", "--run", str(files / f"{name}.run"), "--qrels", str(files / "qrels.txt"), *map(str, words)]


def outcome(capsys, words):
    capsys.readouterr()
    code = run(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().splitlines()


def test_floors(capsys, files):
    gates = ["--fail-under", "R@1=0.7", "--fail-under", "RR@5=0.8"]
    assert outcome(capsys, command(files, "good", *gates))[::2] == (0, [])
    code, out, lines = outcome(capsys, command(files, "bad", *gates))
    assert code == 1
    assert lines == ["gate failed: R@1 is 0.5000, below 0.7", "gate failed: RR@5 is 0.7500, below 0.8"]
    assert "RR@5" in out  # measured because a gate asks for it


def test_an_earlier_report_as_baseline(capsys, files):
    assert run(command(files, "good", "--report", files / "report")) == 0
    against = ["--baseline", files / "report" / "report.json"]
    assert outcome(capsys, command(files, "good", *against, "--max-drop", 0))[0] == 0
    code, _, lines = outcome(capsys, command(files, "bad", *against, "--max-drop", "0.01", "--metric", "R@1"))
    assert (code, lines) == (1, ["gate failed: R@1 fell from 0.8000 to 0.5000, by 0.3000, more than 0.01"])
    assert outcome(capsys, command(files, "bad", *against, "--max-drop", "0.3", "--metric", "R@1"))[0] == 0


def test_failures_are_in_the_json(capsys, files):
    code, out, lines = outcome(capsys, command(files, "bad", "--metric", "R@1", "--fail-under", "R@1=0.7", "--json"))
    assert json.loads(out)["failed"] == ["R@1 is 0.5000, below 0.7"]
    assert (code, len(lines)) == (1, 1)


def test_a_model_against_a_baseline_model_and_a_report(capsys, tmp_path):
    words = ["hand", "foot", "eye", "ear"]
    corpus = {word: Document(word, f"disorder of the {word}") for word in words}
    dataset = RetrievalDataset(corpus, {w: f"my {w} hurts" for w in words}, {w: {w: 1} for w in words}, "tiny")
    write_beir(dataset, tmp_path / "beir")
    demo_model().save_pretrained(str(tmp_path / "model"))
    start = ["evaluate", "--data", tmp_path / "beir", "--model", tmp_path / "model", "--metric", "R@1"]
    gates = ["--max-drop", "0", "--baseline"]
    first = outcome(capsys, [*map(str, start), *gates, str(tmp_path / "model") + "/", "--report", str(tmp_path / "r")])
    assert first[::2] == (0, [])
    report = tmp_path / "r" / "report.json"
    assert outcome(capsys, [*map(str, start), *gates, str(report)])[0] == 0
    content = json.loads(report.read_text())
    for model in content["models"]:
        model["ranking"]["mean"]["R@1"] += 0.1
    report.write_text(json.dumps(content))
    code, _, lines = outcome(capsys, [*map(str, start), *gates, str(report)])
    assert (code, len(lines)) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fail-under", "R@1"], "METRIC=NUMBER"),
        (["--fail-under", "Q@1=0.5"], "unknown metric"),
        (["--max-drop", "0.1"], "--max-drop needs --baseline"),
        (["--max-drop", "-0.1", "--baseline", "x.json"], "x.json"),
        (["--baseline", "some-model"], "must be a report.json"),
        (["--baseline", "nowhere.json", "--max-drop", "0.1"], "nowhere.json"),
        (["--texts", "t.csv"], "--texts cannot be used"),
    ],
)
def test_bad_gates_are_bad_input(capsys, files, words, message):
    code, out, lines = outcome(capsys, command(files, "good", *words))
    assert (code, out, len(lines)) == (2, "", 1)
    assert message in lines[0]


def test_a_baseline_on_other_queries_is_refused(capsys, files):
    assert run(command(files, "good", "--report", files / "report")) == 0
    report = files / "report" / "report.json"
    write_trec_qrels({f"q{i}": {"a": 1} for i in range(9)}, files / "qrels.txt")
    code, _, lines = outcome(capsys, command(files, "good", "--baseline", report, "--max-drop", "0"))
    assert code == 2
    assert "1 are in one only, such as 'q9'" in lines[0]
    code, _, lines = outcome(capsys, command(files, "good", "--baseline", report))
    assert code == 2
    assert "--max-drop is missing" in lines[0]

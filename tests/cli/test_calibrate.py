"""``nearfar calibrate`` says what it promises, keeps the card where it is used, and refuses what data cannot bear."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from nearfar.cli import run
from nearfar.data import LabelledTexts, demo_dataset, demo_model, write_labelled
from nearfar.eval import ThresholdCard
from nearfar.retrieval import Retriever, VectorIndex, load_threshold

ALPHA = 0.05
TOPICS = ["train to {}", "weather in {}", "hotels near {}", "flights from {}", "the history of {}", "a map of {}"]
PLACES = ["Geneva", "Naples", "Oslo", "Lima", "Cairo", "Perth", "Quito", "Seoul", "Dakar", "Turin"]
UNANSWERABLE = [topic.format(place) for topic in TOPICS for place in PLACES]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, 300 terms with their synonyms, and an index of those terms."""
    folder = tmp_path_factory.mktemp("files")
    demo_model().save_pretrained(str(folder / "model"))
    data = demo_dataset(test_terms=300)
    write_labelled(data.test_texts, folder / "texts.jsonl")
    first = LabelledTexts(data.test_texts.texts[:6], data.test_texts.labels[:6])
    write_labelled(first, folder / "few.jsonl")
    write_labelled(LabelledTexts(data.dev_texts.texts[:200], data.dev_texts.labels[:200]), folder / "reference.jsonl")
    (folder / "queries.txt").write_text("\n".join(UNANSWERABLE) + "\n", encoding="utf-8")
    with Retriever.create(folder / "index", folder / "model") as retriever:
        retriever.index_documents([data.corpus[name] for name in dict.fromkeys(data.test_texts.labels)])
    return folder


def result(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def shown(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words]) == 0
    return capsys.readouterr().out


def fails(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_pairs(capsys, files):
    model = files / "model"
    words = ["calibrate", files / "texts.jsonl", "--model", model, "--risk", "far", "--alpha", ALPHA]
    found = result(capsys, *words, "--save", model)
    assert found["kept_in"] == str(model)
    card = load_threshold(model)
    assert ThresholdCard.model_validate(found["card"]) == card
    assert (card.units, card.classes, card.risk) == (150, 300, "far")
    # The measured rate, by a plain matrix: pairs of classes count alike.
    texts = [json.loads(line) for line in (files / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    vectors = demo_model().encode_document([row["text"] for row in texts], normalize_embeddings=True)
    labels = np.array([row["label"] for row in texts])
    accepted = (vectors @ vectors.T >= card.threshold).astype(float)
    one_hot = (labels[:, None] == np.unique(labels)).astype(float)
    share = one_hot.T @ accepted @ one_hot / np.outer(one_hot.sum(axis=0), one_hot.sum(axis=0))  # (classes, classes)
    rate = share[~np.eye(len(share), dtype=bool)].mean()
    assert rate == pytest.approx(card.rates["far"], abs=1e-6)
    assert rate < ALPHA

    text = shown(capsys, *words)
    assert f"{card.threshold:.6f}" in text
    for sentence in (card.promise, *card.assumptions):
        assert sentence in text
    assert card.failing_classes
    assert f"{len(card.failing_classes)} of 300 classes have an own false-accept rate above 0.05:" in text
    assert card.failing_classes[0].label in text


def test_other_risks_take_their_options(capsys, files):
    words = ["calibrate", files / "texts.jsonl", "--model", files / "model", "--alpha", 0.2]
    miss = result(capsys, *words, "--risk", "miss")["card"]
    precision = result(capsys, *words, "--risk", "precision", "--prior", 0.5)["card"]
    options = ["--reference", files / "reference.jsonl", "--beta", 0.1, "--delta", 0.1, "--seed", 3]
    class_far = result(capsys, *words, "--risk", "class_far", *options)["card"]
    assert (miss["risk"], miss["estimated_risk"] < 0.2) == ("miss", True)
    assert (precision["prior"], precision["rates"]["precision"] > 0.8) == (0.5, True)
    assert (class_far["beta"], class_far["delta"], class_far["reference_samples"]) == (0.1, 0.1, 200)


@pytest.mark.slow
def test_searches_end_to_end(capsys, files):
    index = files / "index"
    assert "nearfar calibrate" in fails(capsys, "search", index, "anything", "--matches-only")
    found = result(capsys, "calibrate", "--index", index, "--unanswerable", files / "queries.txt", "--alpha", ALPHA)
    card = ThresholdCard.model_validate(found["card"])
    with VectorIndex.open(index) as opened:
        assert opened.threshold("default") == card
        assert (card.kind, card.units, card.corpus_size) == ("query", 60, len(opened))
        name = opened.get([opened.ids()[0]])[0].title
    answered = sum(bool(result(capsys, "search", index, q, "--matches-only")["hits"]) for q in UNANSWERABLE[::6])
    assert answered <= 1
    hits = result(capsys, "search", index, name, "--matches-only", "--k", 20)["hits"]
    everything = result(capsys, "search", index, name, "--k", 20)["hits"]
    assert hits == [hit for hit in everything if hit["score"] >= card.threshold]
    assert 0 < len(hits) < 20
    assert "No document reaches the threshold." in shown(capsys, "search", index, "train to Rome", "--matches-only")
    assert f"threshold 'default': {card.threshold:.6f}, no_answer at 0.05" in shown(capsys, "index", "info", index)

    # A second one, from JSON lines with groups: now the search must be told which.
    rows = [{"text": text, "group": text.split()[-1]} for text in UNANSWERABLE]
    (files / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    words = ["calibrate", "--index", index, "--unanswerable", files / "queries.jsonl", "--alpha", 0.5]
    text = shown(capsys, *words, "--name", "loose")
    assert "at most 0.5 of unanswerable queries get any answer" in text
    assert "60 queries on" in text
    assert "10 independent groups" in text
    assert "Kept in" in text
    assert "name one" in fails(capsys, "search", index, name, "--matches-only")
    assert result(capsys, "search", index, name, "--matches-only", "--threshold", "loose")["hits"]
    assert "did you mean loose" in fails(capsys, "search", index, name, "--matches-only", "--threshold", "lose")
    assert "give both" in fails(capsys, "search", index, name, "--threshold", "loose")


def test_too_little_data_names_the_smallest_alpha(capsys, files):
    model = files / "model"
    message = fails(capsys, "calibrate", files / "texts.jsonl", "--model", model, "--risk", "far", "--alpha", 0.001)
    smallest = float(message.split("the smallest alpha they can is ")[1].strip())
    assert 0.01 < smallest < 0.05  # 150 pairs without a failure certify 1 - 0.05 ** (1 / 150) = 0.0198 at the best
    result(capsys, "calibrate", files / "texts.jsonl", "--model", model, "--risk", "far", "--alpha", smallest)
    assert "cannot certify" in fails(
        capsys, "calibrate", files / "few.jsonl", "--model", model, "--risk", "far", "--alpha", 0.05
    )
    few = files / "few.txt"
    few.write_text("\n".join(UNANSWERABLE[:58]), encoding="utf-8")  # one query short
    words = ["calibrate", "--index", files / "index", "--unanswerable", few, "--alpha"]
    message = fails(capsys, *words, 0.05)
    assert "58 independent queries cannot certify alpha=0.05" in message
    smallest = float(message.split("the smallest alpha they can is ")[1].strip())
    assert smallest == pytest.approx(1 - 0.05 ** (1 / 58), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrate"], "--alpha"),
        (["calibrate", "--alpha", "0.05"], "either labelled texts with --model and --risk, or --index"),
        (["calibrate", "texts.jsonl", "--model", "model", "--alpha", "0.05"], "either labelled texts"),
        (["calibrate", "texts.jsonl", "--model", "model", "--risk", "fra", "--alpha", "0.05"], "fra"),
        (["calibrate", "texts.jsonl", "--model", "model", "--risk", "far", "--alpha", "5"], "alpha is 5"),
        (["calibrate", "texts.jsonl", "--model", "model", "--risk", "far", "--alpha", "0.05", "--prior", "0.5"],
         "prior belongs to risk='precision'"),
        (["calibrate", "texts.jsonl", "--model", "model", "--risk", "far", "--alpha", "0.05", "--index", "index"],
         "either labelled texts"),
        (["calibrate", "nowhere.jsonl", "--model", "model", "--risk", "far", "--alpha", "0.05"], "nowhere.jsonl"),
        (["calibrate", "texts.jsonl", "--model", "./gone", "--risk", "far", "--alpha", "0.05"], "no such model folder"),
        (["calibrate", "texts.jsonl", "--model", "model", "--risk", "far", "--alpha", "0.05", "--save", "./gone"],
         "no such model folder"),
        (["calibrate", "--index", "index", "--unanswerable", "queries.txt", "--alpha", "0.05", "--risk", "far"],
         "--risk belongs to labelled texts"),
        (["calibrate", "--index", "nowhere", "--unanswerable", "queries.txt", "--alpha", "0.05"], "nowhere"),
        (["calibrate", "--index", "index", "--unanswerable", "none.txt", "--alpha", "0.05"], "none.txt"),
        (["calibrate", "--index", "index", "--unanswerable", "empty.txt", "--alpha", "0.05"], "holds no query"),
        (["calibrate", "--index", "index", "--unanswerable", "halves.jsonl", "--alpha", "0.05"],
         "line 2: the group is missing here"),
        (["calibrate", "--index", "index", "--unanswerable", "ids.jsonl", "--alpha", "0.05"],
         "line 1: 'text' is missing"),
    ],
)  # fmt: skip
def test_bad_input(capsys, files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    (files / "empty.txt").write_text("\n \n", encoding="utf-8")
    (files / "halves.jsonl").write_text('{"text": "a", "group": 1}\n{"text": "b"}\n', encoding="utf-8")
    (files / "ids.jsonl").write_text('{"_id": "a"}\n', encoding="utf-8")
    assert message in fails(capsys, *words)


def test_help_shows_an_example(capsys):
    assert "nearfar calibrate texts.jsonl" in " ".join(shown(capsys, "calibrate", "--help").split())


@pytest.mark.slow
def test_a_grown_index_warns_in_one_line(files, tmp_path):
    with Retriever.create(tmp_path / "index", files / "model") as retriever:
        with VectorIndex.open(files / "index") as index:
            documents = index.get(index.ids())
        retriever.index_documents(documents[:100])
        words = ["calibrate", "--index", tmp_path / "index", "--unanswerable", files / "queries.txt", "--alpha", ALPHA]
        retriever.close()
    assert run([str(word) for word in words]) == 0
    with Retriever.open(tmp_path / "index", files / "model", writable=True) as retriever:
        retriever.index_documents(documents[100:])
    code = "import sys; from nearfar.cli import main; main(sys.argv[1:])"
    search = [sys.executable, "-c", code, "search", str(tmp_path / "index"), "tremor", "--matches-only"]
    found = subprocess.run(search, capture_output=True, text=True, check=True)
    warned = [line for line in found.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "the corpus has grown from 100 to 300 documents" in warned[0]

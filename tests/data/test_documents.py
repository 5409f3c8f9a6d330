from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from nearfar.data import Document, LabelledTexts, RetrievalDataset, TrainingPairs, pairs_from_dataset
from nearfar.errors import InputError

CORPUS = {"d1": Document("d1", "body", "Title"), "d2": Document("d2", "only body"), "d3": Document("d3", "")}


@pytest.mark.parametrize(
    ("text", "title", "content"),
    [("body", "Title", "Title. body"), ("body", "", "body"), ("", "Title", "Title"), ("", "", "")],
)
def test_content_joins_what_is_there(text, title, content):
    assert Document("d", text, title).content == content


def test_documents_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CORPUS["d1"].text = "other"
    assert len({CORPUS["d1"], Document("d1", "body", "Title")}) == 1


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="2 texts, 1 labels"):
        LabelledTexts(["a", "b"], ["x"])
    with pytest.raises(InputError, match="1 queries, 1 documents, 0 labels"):
        TrainingPairs(["q"], ["d"], [])


def test_qrels_must_name_known_ids():
    with pytest.raises(InputError, match=r"query 'q2'.*\(1 such ids\)"):
        RetrievalDataset(CORPUS, {"q1": "x"}, {"q1": {"d1": 1}, "q2": {"d1": 1}}, "bad")
    with pytest.raises(InputError, match=r"document 'd8'.*\(2 such ids\)"):
        RetrievalDataset(CORPUS, {"q1": "x", "q2": "y"}, {"q1": {"d8": 1, "d9": 0}, "q2": {"d8": 1}}, "bad")


def test_pairs_come_from_relevant_judgements_of_documents_with_content():
    qrels = {"q1": {"d1": 2, "d2": 0, "d3": 1}, "q2": {"d1": 1, "d2": 1}}
    pairs = pairs_from_dataset(RetrievalDataset(CORPUS, {"q1": "x", "q2": "y"}, qrels, "tiny"))
    assert pairs == TrainingPairs(["x", "y", "y"], ["Title. body", "Title. body", "only body"], ["d1", "d1", "d2"])


def test_no_relevant_judgement_gives_no_pairs():
    with pytest.raises(InputError, match="'tiny' has no judgement"):
        pairs_from_dataset(RetrievalDataset(CORPUS, {"q1": "x"}, {"q1": {"d1": 0}}, "tiny"))


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "faiss", "pyarrow", "pandas", "sentence_transformers", "transformers", "datasets")
    code = f"import sys, nearfar.data; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The retriever: its encoder is checked, streams are indexed, runs follow TREC's convention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import nearfar.retrieval
from nearfar.data import Document, LabelledTexts, demo_model
from nearfar.errors import DataFileError, DuplicateIdError, InputError, ModelMismatchError
from nearfar.eval import calibrate_no_answer, calibrate_threshold
from nearfar.retrieval import (
    Retriever,
    VectorIndex,
    calibrate_search,
    calibrate_texts,
    fingerprint,
    load_threshold,
    save_threshold,
)
from nearfar.retrieval import retriever as module

TEXTS = {
    "hypertension": "high blood pressure",
    "fracture": "a broken bone",
    "tremor": "shaking of the hands",
    "fever": "raised body temperature",
    "deafness": "loss of hearing",
}
DOCUMENTS = [Document(name, text, title=name.title()) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return demo_model()


def stream() -> Iterator[Document]:
    yield from DOCUMENTS


def test_search_equals_the_model_s_own_similarity(tmp_path: Path, model: SentenceTransformer) -> None:
    queries = ["I cannot stop shaking", "temperature is high", "cannot hear"]
    with Retriever.create(tmp_path / "i", model) as retriever:
        assert retriever.index_documents(stream()) == 5
        result = retriever.search(queries, k=3)
    expected = model.similarity(
        model.encode_query(queries), model.encode_document([document.content for document in DOCUMENTS])
    )
    scores, rows = torch.topk(expected, 3)
    assert result.ids.tolist() == [[DOCUMENTS[row].id for row in found] for found in rows.tolist()]
    np.testing.assert_allclose(result.scores, scores.numpy(), atol=1e-6)
    assert result[0][0].document == DOCUMENTS[2]


def test_a_run_is_a_dict_of_dicts(tmp_path: Path, model: SentenceTransformer) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever:
        retriever.index_documents(DOCUMENTS)
        run = retriever.run({"q1": "shaking", "q2": "bone"}, k=10)
        assert retriever.run({}) == {}
        single = retriever.search("bone", 5)
    assert list(run) == ["q1", "q2"]
    assert run["q2"] == dict(zip(single.ids[0].tolist(), single.scores[0].tolist(), strict=True))
    assert len(run["q1"]) == 5
    assert next(iter(run["q1"])) == "tremor"
    assert all(isinstance(score, float) for score in run["q1"].values())


def test_prompts_of_queries_and_documents_are_applied(tmp_path: Path) -> None:
    model = demo_model()
    model.prompts = {"query": "question about: ", "document": "definition of: "}
    with Retriever.create(tmp_path / "i", model, metric="inner_product") as retriever:
        retriever.index_documents(DOCUMENTS)
        stored = retriever.index.vectors([DOCUMENTS[0].id])
        found = retriever.search("bone", 1)[0][0]
    np.testing.assert_allclose(stored[0], model.encode(f"definition of: {DOCUMENTS[0].content}"), rtol=1e-5)
    documents = model.encode([f"definition of: {document.content}" for document in DOCUMENTS])
    best = documents @ model.encode("question about: bone")
    assert (found.id, pytest.approx(found.score, rel=1e-5)) == (DOCUMENTS[int(best.argmax())].id, best.max())


def test_another_model_is_refused(tmp_path: Path, model: SentenceTransformer) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever:
        retriever.index_documents(DOCUMENTS)
    other = demo_model()
    with torch.no_grad():
        other[0].embedding.weight[0, 0] += 1
    with pytest.raises(ModelMismatchError, match="different: weights") as caught:
        Retriever.open(tmp_path / "i", other)
    assert fingerprint(model).digest in str(caught.value)
    assert fingerprint(other).digest in str(caught.value)
    VectorIndex.open(tmp_path / "i", writable=True).close()  # the refusal left no lock behind
    with pytest.raises(InputError, match="does not record where its model is"):
        Retriever.open(tmp_path / "i")


def test_an_index_without_a_fingerprint_is_refused(tmp_path: Path, model: SentenceTransformer) -> None:
    with VectorIndex.create(tmp_path / "i", dimension=256) as index, pytest.raises(InputError, match="no encoder"):
        Retriever(model, index)


def test_the_model_is_found_beside_the_index_even_when_both_move(tmp_path: Path, model: SentenceTransformer) -> None:
    model.save(str(tmp_path / "out" / "model"))
    with Retriever.create(tmp_path / "out" / "index", tmp_path / "out" / "model") as retriever:
        retriever.index_documents(DOCUMENTS)
    (tmp_path / "out").rename(tmp_path / "moved")
    with Retriever.open(tmp_path / "moved" / "index") as retriever:
        assert retriever.search("shaking", 1).ids.tolist() == [["tremor"]]
        with pytest.raises(InputError, match="writable=True"):
            retriever.index_documents([Document("new", "text")])


def test_several_segments_answer_as_one(
    tmp_path: Path, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(f"{i}", f"{text} case {i}") for i in range(20) for text in list(TEXTS.values())[i % 5 :][:1]]
    with Retriever.create(tmp_path / "one", model) as one:
        one.index_documents(documents)
        monkeypatch.setattr(module, "CHUNK_DOCUMENTS", 3)
        monkeypatch.setattr(module, "SEGMENT_DOCUMENTS", 6)
        with Retriever.create(tmp_path / "many", model) as many:
            assert many.index_documents(iter(documents)) == 20
            assert [segment["count"] for segment in many.index.info()["segments"]] == [6, 6, 6, 2]
            a, b = one.search(list(TEXTS.values()), 7), many.search(list(TEXTS.values()), 7)
    assert a.ids.tolist() == b.ids.tolist()
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)


def test_ctrl_c_keeps_what_was_encoded_and_the_rest_can_follow(
    tmp_path: Path, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_DOCUMENTS", 2)

    def interrupted() -> Iterator[Document]:
        yield from DOCUMENTS[:3]
        raise KeyboardInterrupt

    with Retriever.create(tmp_path / "i", model) as retriever:
        with pytest.raises(KeyboardInterrupt):
            retriever.index_documents(interrupted())
        assert retriever.index.ids() == [document.id for document in DOCUMENTS[:2]]
        with pytest.raises(DuplicateIdError, match="skip_existing"):
            retriever.index_documents(DOCUMENTS)
        assert retriever.index_documents(DOCUMENTS, skip_existing=True) == 3
        retriever.index.verify()
        assert len(retriever.index) == 5


def test_bad_documents_are_named_before_they_are_encoded(tmp_path: Path, model: SentenceTransformer) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever:
        with pytest.raises(DuplicateIdError, match="'fever' occurs twice"):
            retriever.index_documents([*DOCUMENTS, DOCUMENTS[3]])
        with pytest.raises(InputError, match="'blank' has neither title nor text"):
            retriever.index_documents([*DOCUMENTS, Document("blank", "  ")])
        assert len(retriever.index) == 0
        assert retriever.index_documents([]) == 0


@pytest.mark.parametrize("query", ["", "  ", 3, None])
def test_bad_queries(tmp_path: Path, model: SentenceTransformer, query: object) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever, pytest.raises(InputError, match="in row 1"):
        retriever.search(["fine", query])  # type: ignore[list-item]


def test_progress_goes_to_standard_error(
    tmp_path: Path, model: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever:
        retriever.index_documents(DOCUMENTS, show_progress=True)
        assert len(retriever.index) == 5
    output = capsys.readouterr()
    assert "Encoding documents" in output.err
    assert output.out == ""


def test_names_load_on_first_use() -> None:
    code = "import nearfar.retrieval, sys; assert not {'faiss', 'sentence_transformers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(nearfar.retrieval.__all__) == set(dir(nearfar.retrieval))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nearfar.retrieval.Nothing  # noqa: B018


UNANSWERABLE = [f"{what} {number}" for number in range(10) for what in ("train to Geneva", "invoice", "football club",
                "pizza recipe", "tax form", "guitar chord")]  # fmt: skip


@pytest.mark.parametrize("factory", ["flat", "ivf"])
def test_a_calibrated_search_answers_no_unanswerable_query(
    tmp_path: Path, model: SentenceTransformer, factory: str
) -> None:
    filler = [Document(f"{i}", f"finding number {i} of the {word}") for i in range(300) for word in TEXTS]
    documents = [Document(f"{row}", document.text) for row, document in enumerate(filler)] + DOCUMENTS
    with Retriever.create(tmp_path / "i", model, factory=factory) as retriever:
        retriever.index_documents(documents)
        card = calibrate_search(retriever, UNANSWERABLE, alpha=0.05)
        everything = model.similarity(
            model.encode_query(UNANSWERABLE), model.encode_document([document.content for document in documents])
        )
        assert card.threshold == pytest.approx(float(everything.max()), abs=1e-5)  # 60 queries may not fail at all
        assert (card.units, card.corpus_size, card.encoder) == (60, len(documents), fingerprint(model).digest)
        retriever.index.set_threshold("search", card)
    with Retriever.open(tmp_path / "i", model) as retriever:
        assert (
            retriever.search(UNANSWERABLE, 5, matches_only=True, nprobe=1000).counts.max() <= 1
        )  # the worst one's own
        found = retriever.search(["shaking of the hands", "train to Rome"], 5, matches_only="search")
        run = retriever.run({"q1": "shaking of the hands", "q2": "train to Rome"}, 5, matches_only=card)
        assert retriever.search([], matches_only=True).ids.shape == (0, 10)
    assert found[0][0].id == "tremor"
    assert found.counts[1] == 0
    assert run == {"q1": {hit.id: hit.score for hit in found[0]}, "q2": {}}


def test_groups_of_wordings_count_once(tmp_path: Path, model: SentenceTransformer) -> None:
    with Retriever.create(tmp_path / "i", model) as retriever:
        with pytest.raises(InputError, match="is empty; index the documents"):
            calibrate_search(retriever, UNANSWERABLE, alpha=0.5)
        retriever.index_documents(DOCUMENTS)
        groups = [text.split()[0] for text in UNANSWERABLE]
        assert calibrate_search(retriever, UNANSWERABLE, alpha=0.7, groups=groups).units == 6
        with pytest.raises(InputError, match=r"6 independent groups cannot certify alpha=0\.05 .* smallest alpha"):
            calibrate_search(retriever, UNANSWERABLE, alpha=0.05, groups=groups)
        with pytest.raises(InputError, match="must be a list of unanswerable texts"):
            calibrate_search(retriever, "train to Geneva", alpha=0.5)


def test_a_model_s_folder_keeps_its_threshold(tmp_path: Path, model: SentenceTransformer) -> None:
    texts = LabelledTexts([f"{how} {word}" for word in TEXTS for how in ("a", "the")], [w for w in TEXTS for _ in "ab"])
    card = calibrate_texts(model, texts, risk="miss", alpha=0.6)
    vectors = model.encode_document(texts.texts)
    assert card.threshold == calibrate_threshold(vectors, texts.labels, risk="miss", alpha=0.6).threshold
    with pytest.raises(InputError, match=r"smallest alpha they can is 0\.\d+"):
        calibrate_texts(model, texts, risk="miss", alpha=0.01)
    with pytest.raises(InputError, match="'fever' is in the texts and in the reference"):
        calibrate_texts(model, texts, risk="class_far", alpha=0.5, reference=LabelledTexts(["hot"], ["fever"]))
    folder = tmp_path / "model"
    with pytest.raises(DataFileError, match="no such model folder"):
        save_threshold(folder, card)
    model.save(str(folder))
    with pytest.raises(DataFileError, match=r"holds no threshold\.json; .*nearfar calibrate"):
        load_threshold(folder)
    assert save_threshold(folder, card) == folder / "threshold.json"
    assert load_threshold(folder) == card
    assert fingerprint(SentenceTransformer(str(folder))).digest == card.encoder  # the card is no part of the model
    with pytest.raises(ModelMismatchError, match="calibrate again"):
        save_threshold(folder, card.model_copy(update={"encoder": "0123456789abcdef"}))
    with pytest.raises(InputError, match=r"a query card .* and a pair card is needed"):
        save_threshold(folder, calibrate_no_answer([0.5] * 60, alpha=0.05, corpus_size=5, encoder=card.encoder))
    assert load_threshold(folder) == card
    (folder / "threshold.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataFileError, match="not a threshold card"):
        load_threshold(folder)

"""Mining for pairs of texts: what is written, what is never written, and what is taken up again."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nearfar.data import Document, RetrievalDataset, TrainingPairs, demo_dataset, demo_model, load_mined, minilm_model
from nearfar.errors import DataFileError, InputError, ModelMismatchError
from nearfar.miners import NegativeFilters
from nearfar.miners.mining_queries import text_key
from nearfar.retrieval import Retriever, VectorIndex, fine_tune, mine_negatives

OFF = NegativeFilters(relative_margin=None)


@pytest.fixture(scope="module")
def demo():
    return demo_dataset()


@pytest.fixture(scope="module")
def pairs(demo):
    """Synonyms of 120 terms: 2 or 3 queries a term, each with one positive."""
    rows = [
        row
        for label, group in itertools.groupby(
            zip(demo.train.queries, demo.train.documents, demo.train.labels, strict=True), key=lambda row: row[2]
        )
        for row in itertools.islice(group, 3)
        if len(label)
    ][:300]
    return TrainingPairs(*map(list, zip(*rows, strict=True)))


@pytest.fixture(scope="module")
def corpus(demo, pairs):
    wanted = set(pairs.labels)
    others = [document for name, document in demo.corpus.items() if name not in wanted][:400]
    return [*(demo.corpus[name] for name in sorted(wanted)), *others]


@pytest.fixture(scope="module")
def retriever(corpus, tmp_path_factory):
    with Retriever.create(tmp_path_factory.mktemp("index") / "index", demo_model(), factory="flat") as opened:
        opened.index_documents(corpus)
        yield opened


def rows_of(path):
    return pq.read_table(path).to_pylist()


def negatives_of(row):
    return [value for name, value in row.items() if name.startswith("negative")]


def test_the_top_with_an_absolute_margin_is_what_sentence_transformers_mines(retriever, pairs, corpus, tmp_path):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    distinct = {text_key(document.content): document.content for document in corpus}
    assert len(distinct) == len(corpus)
    margin = {"absolute_margin": 0.05}
    theirs = mine_hard_negatives(
        Dataset.from_dict({"query": pairs.queries, "document": pairs.documents}),
        retriever.model,
        corpus=list(distinct.values()),
        num_negatives=3,
        range_max=300,
        output_format="n-tuple",
        verbose=False,
        **margin,
    )
    filters = NegativeFilters(relative_margin=None, **margin)
    report = mine_negatives(
        retriever, pairs, tmp_path / "mined.parquet", num_negatives=3, range_max=300, filters=filters
    )
    ours = load_mined(report.path).remove_columns("label")
    assert ours.column_names == theirs.column_names
    assert ours.to_list() == theirs.to_list()
    assert 100 < len(ours) == report.rows
    assert report.removed["absolute_margin"] > 0


def test_no_negative_is_known_to_answer_its_query(retriever, pairs, tmp_path):
    report = mine_negatives(
        retriever, pairs, tmp_path / "mined.parquet", filters=OFF, sampling="softmax", duplicate_similarity=0.95
    )
    answers = {}
    for query, document, label in zip(pairs.queries, pairs.documents, pairs.labels, strict=True):
        answers.setdefault(label, set()).add(text_key(document))
        answers.setdefault(query, set()).add(label)
    rows = rows_of(report.path)
    assert {row["query"] for row in rows} == set(pairs.queries)
    for row in rows:
        known = set().union(*(answers[label] for label in answers[row["query"]]))
        negatives = [text_key(text) for text in negatives_of(row)]
        assert len(set(negatives)) == 4
        assert not known & set(negatives)
        assert text_key(row["document"]) in known
    assert report.removed["positive"] > 0.9 * report.queries  # the other positives are no candidates


def test_what_rows_of_one_label_answer_is_no_negative(retriever, corpus, tmp_path):
    queries = [document.title for document in corpus[:6]]
    documents = [document.content for document in corpus[:6]]
    apart = TrainingPairs(queries, documents, list("abcdef"))
    together = TrainingPairs(queries, documents, ["one"] * 6)
    options = {"filters": OFF, "num_negatives": 500, "range_max": 600}
    mine_negatives(retriever, apart, tmp_path / "apart.parquet", **options)
    mine_negatives(retriever, together, tmp_path / "together.parquet", **options)
    assert all(set(negatives_of(row)) & set(documents) for row in rows_of(tmp_path / "apart.parquet"))
    assert not any(set(negatives_of(row)) & set(documents) for row in rows_of(tmp_path / "together.parquet"))


def test_judgements_are_known_by_id_when_the_text_has_changed(tmp_path):
    old = {name: Document(name, f"{name} of the past") for name in ("tremor", "fever", "cough")}
    dataset = RetrievalDataset(old, {"q": "tremor"}, {"q": {"tremor": 1, "cough": 0}}, "tiny")
    with Retriever.create(tmp_path / "index", demo_model()) as retriever:
        retriever.index_documents([Document(name, f"{name} of today") for name in old])
        mine_negatives(retriever, dataset, tmp_path / "mined.parquet", num_negatives=1, filters=OFF)
    assert [negatives_of(row) for row in rows_of(tmp_path / "mined.parquet")] in (
        [["fever of today"]],
        [["cough of today"]],
    )


def changed(model):
    """Another model, under the same name."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.6 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_changed_model_never_returns_the_negatives_of_the_old_one(pairs, corpus, tmp_path):
    """sentence-transformers' cache goes by the model's name: after training it gives the old negatives."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    def theirs(model, cache):
        few = Dataset.from_dict({"query": pairs.queries[:50], "document": pairs.documents[:50]})
        options = {"num_negatives": 2, "range_max": 20, "output_format": "n-tuple", "verbose": False}
        return mine_hard_negatives(few, model, cache_folder=cache, **options).to_list()

    def ours(model, index, path):
        with Retriever.create(index, model, factory="flat") as retriever:
            retriever.index_documents(corpus)
            return mine_negatives(retriever, pairs, path, filters=OFF), rows_of(path)

    model, path = demo_model(), tmp_path / "mined.parquet"
    _, before = ours(model, tmp_path / "one", path)
    theirs_before = theirs(model, str(tmp_path / "cache"))

    changed(model)
    assert theirs(model, str(tmp_path / "cache")) == theirs_before
    assert theirs(model, None) != theirs_before

    report, after = ours(model, tmp_path / "two", path)
    assert not report.reused
    assert after != before
    assert after == ours(model, tmp_path / "three", tmp_path / "fresh.parquet")[1]
    with pytest.raises(ModelMismatchError):
        Retriever.open(tmp_path / "one", model)


def test_the_same_call_is_answered_from_its_file_and_any_change_is_not(pairs, corpus, tmp_path, monkeypatch):
    path = tmp_path / "mined.parquet"
    with Retriever.create(tmp_path / "index", demo_model(), factory="flat") as retriever:
        retriever.index_documents(corpus)
        first = mine_negatives(retriever, pairs, path)
        with monkeypatch.context() as patched:
            patched.setattr(retriever.model, "encode_query", None)
            again = mine_negatives(retriever, pairs, path)
        assert again.reused
        assert vars(again) == {**vars(first), "reused": True}
        assert not mine_negatives(retriever, pairs, path, seed=1).reused
        assert not mine_negatives(retriever, pairs, path, filters=NegativeFilters(relative_margin=0.06)).reused
        few = TrainingPairs(pairs.queries[1:], pairs.documents[1:], pairs.labels[1:])
        assert not mine_negatives(retriever, few, path).reused
        assert mine_negatives(retriever, few, path).reused
        retriever.index_documents([Document("new", "a new document")])
        assert not mine_negatives(retriever, few, path).reused
        assert not mine_negatives(retriever, few, path, judge=lambda texts: np.zeros(len(texts)), short="fill").reused


class Interrupted:
    """Lets `encode_query` be called a few times, then presses Ctrl-C."""

    def __init__(self, model, calls):
        self.encode, self.left, self.texts = model.encode_query, calls, []

    def __call__(self, texts, **options):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.texts += texts
        return self.encode(texts, **options)


@pytest.mark.parametrize("options", [{}, {"sampling": "random"}, {"graded": True, "mined_format": "pair"}])
def test_an_interrupted_run_goes_on_and_ends_like_one_that_was_not(retriever, pairs, tmp_path, monkeypatch, options):
    path, whole = tmp_path / "mined.parquet", tmp_path / "whole.parquet"
    options = {"chunk_queries": 50, "short": "fill", **options}
    expected = mine_negatives(retriever, pairs, whole, **options)
    sampled = int(bool(options.get("graded")))  # the sample of all pairs is encoded first
    with monkeypatch.context() as patched:
        patched.setattr(retriever.model, "encode_query", Interrupted(retriever.model, 2 + sampled))
        with pytest.raises(KeyboardInterrupt):
            mine_negatives(retriever, pairs, path, **options)
    assert not path.exists()
    assert len(list((tmp_path / "mined.parquet.parts").glob("part-*.parquet"))) == 2

    counting = Interrupted(retriever.model, 100)
    monkeypatch.setattr(retriever.model, "encode_query", counting)
    report = mine_negatives(retriever, pairs, path, **options)
    assert len(counting.texts) == len(set(pairs.queries)) * (1 + sampled) - 100
    assert rows_of(path) == rows_of(whole)
    assert {**vars(report), "path": None} == {**vars(expected), "path": None}
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["mined.parquet", "whole.parquet"]


def test_parts_of_other_settings_are_not_taken_up(retriever, pairs, tmp_path, monkeypatch):
    path = tmp_path / "mined.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(retriever.model, "encode_query", Interrupted(retriever.model, 2))
        with pytest.raises(KeyboardInterrupt):
            mine_negatives(retriever, pairs, path, chunk_queries=50, filters=OFF)
    mine_negatives(retriever, pairs, path, chunk_queries=40)
    mine_negatives(retriever, pairs, tmp_path / "whole.parquet")
    assert rows_of(path) == rows_of(tmp_path / "whole.parquet")


def test_the_formats_hold_the_same_negatives(retriever, pairs, tmp_path):
    few = TrainingPairs(pairs.queries[:20], pairs.documents[:20], pairs.labels[:20])
    found = {}
    for mined_format in ("n-tuple", "triplet", "pair"):
        for graded in (False, True):
            path = tmp_path / f"{mined_format}{graded}.parquet"
            options = {"num_negatives": 2, "filters": OFF, "graded": graded, "mined_format": mined_format}
            mine_negatives(retriever, few, path, **options)
            found[mined_format, graded] = rows_of(path)
    tuples, graded = found["n-tuple", False], found["n-tuple", True]
    assert list(tuples[0]) == ["query", "document", "negative_1", "negative_2", "label"]
    assert [negatives_of(row) for row in tuples] == [negatives_of(row) for row in graded]
    classes = {row["document"]: row["label"] for row in tuples}
    assert sorted(classes.values()) == list(range(len(set(few.labels))))
    assert all(row["label"][0] == 1 and len(row["label"]) == 3 for row in graded)
    expected = [(row["query"], row["document"], n, row["label"]) for row in tuples for n in negatives_of(row)]
    assert [tuple(row.values()) for row in found["triplet", False]] == expected
    labels = {}
    for row in graded:
        texts = [row["document"], *negatives_of(row)]
        labels.update({(row["query"], text): grade for text, grade in zip(texts, row["label"], strict=True)})
    assert {(row["query"], row["document"]): row["label"] for row in found["pair", True]} == labels
    zero_one = {key: float(key[1] in classes and grade == 1) for key, grade in labels.items()}
    pairs_found = {(row["query"], row["document"]): row["label"] for row in found["pair", False]}
    assert pairs_found.keys() == zero_one.keys()
    assert set(pairs_found.values()) == {0.0, 1.0}


def test_a_query_with_two_positives_gives_a_row_for_each(retriever, corpus, tmp_path):
    documents = [corpus[0].content, corpus[1].content]
    data = TrainingPairs(["one query"] * 3, [*documents, documents[0]], ["a", "b", "a"])
    report = mine_negatives(retriever, data, tmp_path / "mined.parquet", filters=OFF)
    rows = rows_of(report.path)
    assert [row["document"] for row in rows] == documents
    assert negatives_of(rows[0]) == negatives_of(rows[1])
    assert not set(negatives_of(rows[0])) & set(documents)
    assert [report.queries, report.pairs, report.rows, report.negatives] == [1, 2, 2, 4]


def test_a_cross_encoder_judges_and_its_weights_are_in_the_key(retriever, pairs, tmp_path):
    from sentence_transformers import CrossEncoder

    minilm_model().save_pretrained(str(tmp_path / "minilm"))
    torch.manual_seed(0)
    judge = CrossEncoder(str(tmp_path / "minilm"), num_labels=1, device="cpu", local_files_only=True)
    few = TrainingPairs(pairs.queries[:3], pairs.documents[:3], pairs.labels[:3])
    options = {"judge": judge.predict, "graded": True, "filters": OFF, "range_max": 5, "num_negatives": 2}
    mine_negatives(retriever, few, tmp_path / "mined.parquet", **options)
    for row in rows_of(tmp_path / "mined.parquet"):
        scores = judge.predict([(row["query"], text) for text in negatives_of(row)])
        np.testing.assert_allclose(row["label"], [1.0, *scores], atol=1e-5)
    assert mine_negatives(retriever, few, tmp_path / "mined.parquet", **options).reused
    with torch.no_grad():
        next(judge.parameters()).mul_(1.1)
    assert not mine_negatives(retriever, few, tmp_path / "mined.parquet", **options).reused


def test_queries_without_a_known_word_are_counted_and_left_out(retriever, pairs, tmp_path, monkeypatch):
    encode = retriever.model.encode_query

    def blank_the_second(texts, **options):
        vectors = encode(texts, **options)
        vectors[[text == pairs.queries[1] for text in texts]] = 0
        return vectors

    monkeypatch.setattr(retriever.model, "encode_query", blank_the_second)
    few = TrainingPairs(pairs.queries[:5], pairs.documents[:5], pairs.labels[:5])
    report = mine_negatives(retriever, few, tmp_path / "mined.parquet", filters=OFF)
    assert [report.queries, report.unusable, report.dropped, report.rows] == [5, 1, 0, 4]


def test_short_queries_are_reported(retriever, pairs, tmp_path):
    options = {"filters": NegativeFilters(relative_margin=0.5), "mined_format": "triplet"}
    reports = {how: mine_negatives(retriever, pairs, tmp_path / f"{how}.parquet", short=how, **options)
               for how in ("keep", "drop", "fill")}  # fmt: skip
    assert len({report.short for report in reports.values()}) == 1
    short = reports["keep"].short
    assert 0 < short < len(pairs)
    assert reports["drop"].dropped == short
    assert reports["drop"].rows == 4 * (reports["drop"].queries - short)
    assert reports["drop"].rows < reports["keep"].rows < reports["fill"].rows
    assert reports["fill"].negatives == 4 * (reports["fill"].queries - reports["fill"].dropped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": "keep"}, "n-tuples have one length"),
        ({"num_negatives": 5000, "range_max": 6000}, "too few for num_negatives=5000"),
        ({"num_negatives": 60}, "range_max=50 leaves 50 ranks"),
        ({"chunk_queries": 0}, "chunk_queries=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mined_format": "tuple"}, "did you mean n-tuple"),
        ({"filters": NegativeFilters(max_score=-1)}, "no query has negatives left"),
    ],
)
def test_bad_options(retriever, pairs, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        mine_negatives(retriever, pairs, tmp_path / "mined.parquet", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_pairs_and_no_documents(retriever, pairs, tmp_path):
    with pytest.raises(InputError, match="no pairs"):
        mine_negatives(retriever, TrainingPairs([], [], []), tmp_path / "mined.parquet")
    vectors = retriever.model.encode_document(["tremor", "fever", "cough"])
    with VectorIndex.create(tmp_path / "bare", dimension=256, encoder=retriever.index.encoder) as bare:
        bare.add(vectors, ["a", "b", "c"])
        with pytest.raises(InputError, match="has no text in the index"):
            mine_negatives(
                Retriever(retriever.model, bare), pairs, tmp_path / "mined.parquet", num_negatives=1, filters=OFF
            )


def test_a_file_of_something_else_is_not_overwritten(retriever, pairs, tmp_path):
    for name in ("notes.parquet", "notes.txt"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
        with pytest.raises(DataFileError, match=name):
            mine_negatives(retriever, pairs, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_an_index_that_grew_behind_its_reader(corpus, pairs, tmp_path):
    with Retriever.create(tmp_path / "index", demo_model()) as writer:
        writer.index_documents(corpus[:50])
        with Retriever.open(tmp_path / "index", writer.model) as reader:
            writer.index_documents(corpus[50:60])
            with pytest.raises(InputError, match="open it again"):
                mine_negatives(reader, pairs, tmp_path / "mined.parquet")


def test_graded_tuples_train_with_bixse(retriever, pairs, corpus, tmp_path):
    mine_negatives(retriever, pairs, tmp_path / "mined.parquet", num_negatives=2, graded=True)
    mined = load_mined(tmp_path / "mined.parquet")
    assert all(0 <= grade <= 1 for label in mined["label"] for grade in label)
    result = fine_tune(
        demo_model(), mined, loss="bixse", output_dir=tmp_path / "run", epochs=1, batch_size=32, learning_rate=5e-2,
        batch_sampler="no_duplicates", show_progress=False,
    )  # fmt: skip
    contents = [document.content for document in corpus]

    def hits(model):
        """The share of queries whose positive comes first in the corpus."""
        vectors = model.encode([*contents, *mined["query"]], normalize_embeddings=True)
        best = (vectors[len(contents) :] @ vectors[: len(contents)].T).argmax(axis=1)
        return np.mean([contents[at] == document for at, document in zip(best, mined["document"], strict=True)])

    assert hits(result.model) > hits(demo_model()) + 0.05

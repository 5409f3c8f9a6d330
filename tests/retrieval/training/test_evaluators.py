"""Evaluators against brute force and pytrec_eval, in real training, and in two processes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch.multiprocessing as mp

from nearfar.data import Document, LabelledTexts, RetrievalDataset, TrainingPairs, demo_model
from nearfar.errors import InputError
from nearfar.eval import evaluate_embeddings, opis
from nearfar.retrieval import fine_tune
from nearfar.retrieval.training.evaluator import ClassEvaluator, RetrievalEvaluator
from tests.retrieval.training.runs import free_port

WORDS = ["hand", "foot", "eye", "ear", "nose", "heart", "lung", "liver"]
KINDS = ["disorder of the", "pain in the", "weak", "swollen", "absent"]
PAIRS = TrainingPairs(
    [f"sore {word}" for word in WORDS for _ in KINDS],
    [f"{kind} {word}" for word in WORDS for kind in KINDS],
    [word for word in WORDS for _ in KINDS],
)
TEXTS = LabelledTexts(PAIRS.documents, PAIRS.labels)
SETTINGS = {"batch_size": 8, "learning_rate": 1e-2, "show_progress": False, "loss": "circle"}


def graded():
    """Every query has answers of grades 2 and 1 among forty documents."""
    corpus = {f"{w}-{i}": Document(f"{w}-{i}", f"{kind} {w}") for w in WORDS for i, kind in enumerate(KINDS)}
    queries = {word: f"my {word} hurts" for word in WORDS}
    qrels = {word: {f"{word}-1": 2, f"{word}-0": 1, f"{word}-4": 1} for word in WORDS}
    return RetrievalDataset(corpus, queries, qrels, "graded")


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 10_000])
def test_any_chunk_size_finds_what_brute_force_finds(chunk_size):
    dataset, model = graded(), demo_model()
    run = RetrievalEvaluator(dataset, depth=10, chunk_size=chunk_size).run(model)
    documents = model.encode_document([d.content for d in dataset.corpus.values()], normalize_embeddings=True)
    queries = model.encode_query(list(dataset.queries.values()), normalize_embeddings=True)
    scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
    ids = np.array(list(dataset.corpus))
    for i, query in enumerate(dataset.queries):
        assert list(run[query]) == ids[np.argsort(-scores[i], kind="stable")[:10]].tolist()
        np.testing.assert_allclose(list(run[query].values()), np.sort(scores[i])[::-1][:10], atol=1e-5)


def test_graded_gain_is_that_of_pytrec_eval():
    dataset, model = graded(), demo_model()
    evaluator = RetrievalEvaluator(dataset, ["nDCG@10", "AP@100"], depth=40)
    found = evaluator(model)
    oracle = pytrec_eval.RelevanceEvaluator(dataset.qrels, {"ndcg_cut_10", "map_cut_100"}).evaluate(
        evaluator.run(model)
    )
    for name, key in (("graded_nDCG@10", "ndcg_cut_10"), ("graded_AP@100", "map_cut_100")):
        assert found[name] == pytest.approx(np.mean([value[key] for value in oracle.values()]), abs=1e-9)
    binary = RetrievalDataset(
        dataset.corpus, dataset.queries, {q: dict.fromkeys(of, 1) for q, of in dataset.qrels.items()}, "binary"
    )
    assert RetrievalEvaluator(binary, ["nDCG@10"])(model)["binary_nDCG@10"] != found["graded_nDCG@10"]


def test_no_more_than_a_chunk_is_encoded_at_once():
    model, sizes = demo_model(), []
    encode = model.encode_document

    def counting(texts, **options):
        sizes.append(len(texts))
        return encode(texts, **options)

    model.encode_document = counting
    RetrievalEvaluator(graded(), chunk_size=16)(model)
    assert sizes == [16, 16, 8]


def test_a_model_that_has_diverged_is_named():
    model = demo_model()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="training has diverged"):
        RetrievalEvaluator(graded())(model)


def test_class_metrics_are_those_of_the_embeddings():
    model = demo_model()
    vectors = model.encode_document(TEXTS.texts)
    found = ClassEvaluator(TEXTS, "terms", ks=[1, 3])(model)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    labels = np.array(TEXTS.labels)
    assert found["terms_hit@1"] == pytest.approx(np.mean(labels[cosines.argmax(axis=1)] == labels))
    expected = evaluate_embeddings(vectors, labels, (1, 3)).mean
    assert {
        f"terms_{name}": pytest.approx(value, abs=1e-6) for name, value in expected.items()
    }.items() <= found.items()
    assert found["terms_OPIS"] == pytest.approx(opis(vectors, labels, min_class_size=5).opis, abs=1e-4)


def test_classes_too_small_for_opis():
    few = LabelledTexts(["a hand", "the hand", "an eye", "the eye"], ["h", "h", "e", "e"])
    assert set(ClassEvaluator(few)(demo_model())) == {
        f"classes_{name}" for name in ("hit@1", "hit@5", "hit@10", "R-precision", "MAP@R", "MRR")
    }
    with pytest.raises(InputError, match="not measured on these texts"):
        ClassEvaluator(few, primary="OPIS")


def test_a_collapse_does_not_end_the_training():
    found = ClassEvaluator(TEXTS).measure(np.ones((len(TEXTS.texts), 4)))
    assert np.isnan(found["OPIS"])
    assert found["MAP@R"] < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetrievalEvaluator(graded(), chunk_size=0), "chunk_size is 0"),
        (lambda: RetrievalEvaluator(graded(), depth=0), "depth is 0"),
        (lambda: RetrievalEvaluator(graded(), []), "metrics is empty"),
        (lambda: ClassEvaluator(TEXTS, batch_size=0), "batch_size is 0"),
        (lambda: ClassEvaluator(TEXTS, primary="hit@7"), "primary is 'hit@7'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("primary", ["MAP@R", "OPIS-corrected"])
def test_class_metrics_at_every_epoch_of_a_training(tmp_path, primary):
    evaluator = ClassEvaluator(TEXTS, "terms", primary=primary)
    before = evaluator(demo_model())
    result = fine_tune(demo_model(), PAIRS, output_dir=tmp_path, evaluator=evaluator, epochs=3, **SETTINGS)
    (file,) = tmp_path.rglob("terms.csv")
    written = rows(file)
    assert [float(row["epoch"]) for row in written] == [1, 2, 3]
    values = [float(row[primary]) for row in written]
    best = min(values) if primary.startswith("OPIS") else max(values)
    assert result.metrics[f"terms_{primary}"] == pytest.approx(best, abs=1e-6)
    assert result.metrics["terms_MAP@R"] > before["terms_MAP@R"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"terms_{primary}" in card or primary.lower() in card.lower()


def test_retrieval_metrics_at_every_epoch_of_a_training(tmp_path):
    evaluator = RetrievalEvaluator(graded(), ["nDCG@10", "R@1"], chunk_size=7)
    result = fine_tune(demo_model(), PAIRS, output_dir=tmp_path, evaluator=evaluator, epochs=2, **SETTINGS)
    (file,) = tmp_path.rglob("graded.csv")
    written = rows(file)
    assert [float(row["epoch"]) for row in written] == [1, 2]
    assert result.metrics["graded_nDCG@10"] == pytest.approx(max(float(row["nDCG@10"]) for row in written), abs=1e-6)


def _train(rank, folder, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.set_num_threads(1)
    model = demo_model()
    seen = []
    encode = model._inference
    model._inference = lambda texts, **options: (seen.append(len(texts)), encode(texts, **options))[1]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=f"{folder}/run",
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            ddp_backend="gloo",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": PAIRS.queries, "positive": PAIRS.documents}),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=[RetrievalEvaluator(graded(), ["nDCG@10"], chunk_size=7), ClassEvaluator(TEXTS, "terms")],
    )
    trainer.train()
    model._inference = encode
    logged = [entry for entry in trainer.state.log_history if "eval_graded_nDCG@10" in entry]
    alone = RetrievalEvaluator(graded(), ["nDCG@10"])(model) | ClassEvaluator(TEXTS, "terms")(model)
    Path(folder, f"{rank}.json").write_text(json.dumps({"logged": logged, "alone": alone, "encoded": sum(seen)}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_encoding_and_agree_with_one(tmp_path):
    mp.spawn(_train, (str(tmp_path), free_port()), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    texts = len(WORDS) + 2 * len(PAIRS.documents)  # queries, corpus, labelled texts
    assert [of["encoded"] for of in found] == pytest.approx([texts, texts], abs=20)  # half of two evaluations each
    for of in found:
        assert [entry["epoch"] for entry in of["logged"]] == [1, 2]
        for name, value in of["alone"].items():
            assert of["logged"][-1][f"eval_{name}"] == pytest.approx(value, abs=1e-6)
    assert found[0]["alone"] == found[1]["alone"]
    for name in ("graded", "terms"):
        (file,) = tmp_path.rglob(f"{name}.csv")
        assert len(rows(file)) == 2  # written once, not by both

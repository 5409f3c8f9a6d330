"""evaluate_embeddings against pytorch-metric-learning and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

import nearfar.eval.embeddings as module
from nearfar.errors import InputError
from nearfar.eval.embeddings import evaluate_embeddings


def random_set(seed: int, samples: int = 150, classes: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    centres = rng.normal(size=(classes + 1, 16))
    return centres[labels] + rng.normal(size=(samples, 16)) * 1.5, labels


def naive(embeddings: np.ndarray, labels: np.ndarray, ks: list[int]) -> dict[str, list[float]]:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = [*(f"hit@{k}" for k in ks), "R-precision", "MAP@R", "MRR"]
    values: dict[str, list[float]] = {name: [] for name in names}
    for query in range(len(unit)):
        others = [row for row in range(len(unit)) if row != query]
        total = sum(labels[row] == labels[query] for row in others)
        if not total:
            continue
        # Other classes first where the cosine is equal.
        others.sort(key=lambda row: (-float(unit[query] @ unit[row]), labels[row] == labels[query]))
        hits = [labels[row] == labels[query] for row in others]
        for k in ks:
            values[f"hit@{k}"].append(float(any(hits[:k])))
        values["R-precision"].append(sum(hits[:total]) / total)
        values["MAP@R"].append(sum(sum(hits[: r + 1]) / (r + 1) for r in range(total) if hits[r]) / total)
        values["MRR"].append(1 / (hits.index(True) + 1))
    return values


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_loop_for_each_query(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = random_set(seed)
    labels[:3] = [900, 901, 902]  # single samples
    monkeypatch.setattr(module, "_BLOCK_BYTES", 150 * 8 * 7)  # seven rows a block
    monkeypatch.setattr(module, "_MANY", 10 * seed)  # rivals are counted, sorted, or some of each
    result = evaluate_embeddings(embeddings, labels, ks=[1, 5, 10])
    for name, wanted in naive(embeddings, labels, [1, 5, 10]).items():
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=0, atol=1e-12)
        assert result.mean[name] == pytest.approx(np.mean(wanted), abs=1e-12)
    assert set(result.singletons) >= {0, 1, 2}
    assert sorted([*result.query_indices, *result.singletons]) == list(range(150))
    assert result.class_count == len(set(labels.tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_equals_pytorch_metric_learning(seed: int) -> None:
    embeddings, labels = random_set(seed)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=len(labels) - 1,
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    wanted = calculator.get_accuracy(torch.tensor(embeddings), torch.tensor(labels))
    result = evaluate_embeddings(embeddings, labels).mean
    assert result["hit@1"] == pytest.approx(wanted["precision_at_1"], abs=1e-6)
    assert result["R-precision"] == pytest.approx(wanted["r_precision"], abs=1e-6)
    assert result["MAP@R"] == pytest.approx(wanted["mean_average_precision_at_r"], abs=1e-6)
    assert result["MRR"] == pytest.approx(wanted["mean_reciprocal_rank"], abs=1e-6)


def test_every_way_to_pass_the_same_data_gives_the_same_values() -> None:
    embeddings, labels = random_set(0)
    wanted = evaluate_embeddings(embeddings, labels).mean
    names = [f"class {label:02}" for label in labels]
    tensor = torch.tensor(embeddings, requires_grad=True)
    assert evaluate_embeddings(tensor, torch.tensor(labels)).mean == wanted
    assert evaluate_embeddings(embeddings * 1e-200, names).mean == pytest.approx(wanted)
    assert evaluate_embeddings(embeddings.tolist(), np.array(names)).mean == wanted
    assert evaluate_embeddings(tensor.bfloat16(), labels).mean["MRR"] == pytest.approx(wanted["MRR"], abs=0.05)


def test_large_labels_are_never_rounded() -> None:
    # As float64, 2**53 and 2**53 + 1 are one number; a list that spans int64 and uint64 turns float in numpy.
    labels = [2**53, 2**53, 2**53 + 1, 2**53 + 1, -1, 2**63, 2**70]
    result = evaluate_embeddings(np.random.default_rng(0).normal(size=(7, 4)), labels)
    assert result.class_count == 5
    assert list(result.query_indices) == [0, 1, 2, 3]


def test_a_collapsed_model_gains_nothing_from_ties() -> None:
    result = evaluate_embeddings(np.ones((20, 4)), np.repeat(np.arange(10), 2))
    assert result.mean["hit@1"] == 0
    assert result.mean["MRR"] == pytest.approx(1 / 19)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones(4), [0, 0, 1, 1], r"shape \(4,\)"),
        (np.ones((0, 3)), [], "not empty"),
        ([[1.0], [1.0, 2.0]], [0, 0], "different lengths"),
        (np.array([["a"], ["b"]]), [0, 0], "real numbers"),
        (np.array([[1.0, np.nan], [1, 1], [1, 2]]), [0, 0, 1], "first in row 0"),
        (np.array([[1.0, 1], [1, np.inf], [1, 2]]), [0, 0, 1], "first in row 1"),
        (np.array([[1.0, 1], [0, 0], [1, 2]]), [0, 0, 1], "row 1 of the embeddings is all zeros"),
        (np.ones((3, 2)), [0, 0], "2 labels for 3 embeddings"),
        (np.ones((3, 2)), [0.0, 0.0, 1.0], "hold float"),
        (np.ones((3, 2)), [0, "a", 1], "hold int, str"),
        (np.ones((3, 2)), np.zeros((3, 1), dtype=int), "one-dimensional"),
        (np.ones((3, 2)), [0, 1, 2], "one sample only"),
        (np.ones((3, 2)), [7, 7, 7], "label 7"),
    ],
)
def test_bad_input_is_named(embeddings: object, labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_embeddings(embeddings, labels)


def naive_gallery(
    queries: np.ndarray, labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in ("hit@1", "hit@5", "R-precision", "MAP@R", "MRR")}
    queries, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    for query, label in zip(queries, labels, strict=True):
        hits = (gallery_labels == label)[np.argsort(-(gallery @ query), kind="stable")]
        total = hits.sum()
        if total:
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            values["hit@1"].append(float(hits[0]))
            values["hit@5"].append(float(hits[:5].any()))
            values["R-precision"].append(hits[:total].mean())
            values["MAP@R"].append((precision * hits)[:total].sum() / total)
            values["MRR"].append(1 / (np.argmax(hits) + 1))
    return values


@pytest.mark.parametrize("seed", range(5))
def test_queries_and_gallery_equal_a_naive_loop_and_pytorch_metric_learning(seed: int) -> None:
    embeddings, labels = random_set(seed, samples=400, classes=8)  # classes that are sorted, and some that are counted
    labels[::40] = 50 + seed  # a small class
    queries, gallery = slice(0, 100), slice(100, 400)
    labels[:3] = [900, 901, 901]  # classes that the gallery does not hold
    result = evaluate_embeddings(
        embeddings[queries], labels[queries], [1, 5], reference=embeddings[gallery], reference_labels=labels[gallery]
    )
    for name, wanted in naive_gallery(
        embeddings[queries], labels[queries], embeddings[gallery], labels[gallery]
    ).items():
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=0, atol=1e-12, err_msg=name)
    assert result.singletons.tolist() == [0, 1, 2]
    assert result.class_count == len(set(labels[queries].tolist()))
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=300,
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    tensors = [torch.tensor(x) for x in (embeddings[queries], labels[queries], embeddings[gallery], labels[gallery])]
    expected = calculator.get_accuracy(*tensors)
    assert result.mean["hit@1"] == pytest.approx(expected["precision_at_1"], abs=1e-6)
    assert result.mean["R-precision"] == pytest.approx(expected["r_precision"], abs=1e-6)
    assert result.mean["MAP@R"] == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-6)
    assert result.mean["MRR"] == pytest.approx(expected["mean_reciprocal_rank"], abs=1e-6)


def test_a_copy_of_the_queries_as_gallery_finds_itself() -> None:
    embeddings, labels = random_set(1)
    result = evaluate_embeddings(embeddings, labels, reference=embeddings, reference_labels=labels)
    assert result.mean["hit@1"] == 1
    assert len(result.query_indices) == len(labels)


def test_means_of_classes() -> None:
    embeddings, labels = random_set(2)
    names = np.array([f"class {label:02}" for label in labels])
    names[:2] = ["alone", "single"]
    result = evaluate_embeddings(embeddings, names)
    queried = names[result.query_indices]
    assert result.class_labels == sorted(set(queried.tolist()))
    for name, values in result.per_query.items():
        wanted = [values[queried == label].mean() for label in result.class_labels]
        np.testing.assert_allclose(result.per_class[name], wanted, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": np.ones((2, 2))}, "reference is given without reference_labels"),
        ({"reference_labels": [0]}, "reference_labels is given without reference"),
        ({"reference": np.ones((2, 3)), "reference_labels": [0, 1]}, "2 dimensions and reference has 3"),
        ({"reference": np.ones((2, 2)), "reference_labels": [0]}, "1 reference_labels for 2 rows"),
        ({"reference": np.ones((2, 2)), "reference_labels": [5, 6]}, "no label of the embeddings"),
        ({"reference": np.ones((2, 2)), "reference_labels": [0, "a"]}, "hold int, str"),
    ],
)
def test_a_gallery_is_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_embeddings(np.ones((3, 2)), [0, 0, 1], **options)


def test_bad_depths_are_refused() -> None:
    with pytest.raises(InputError, match="ks must be positive"):
        evaluate_embeddings(np.ones((3, 2)), [0, 0, 1], ks=[0])

"""Faults of pytorch-metric-learning 2.9's AccuracyCalculator that evaluate_embeddings must not have."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from nearfar.eval import evaluate_embeddings


def test_fault_10_large_integer_labels_stay_apart() -> None:
    """Labels cast to float32 merge above 2^24, and samples of other classes count as hits."""
    pairs = [2**24 + n for n in range(8)]
    labels = [label for label in pairs for _ in range(2)]  # two samples of each class, placed at right angles
    embeddings = np.eye(16)
    embeddings[np.arange(0, 16, 2), 2 * ((np.arange(8) + 1) % 8)] = 0.5  # nearest: the first sample of the next class
    result = evaluate_embeddings(embeddings, labels)
    assert result.class_count == 8
    truth = evaluate_embeddings(embeddings, [n // 2 for n in range(16)]).mean
    assert result.mean == truth
    calculator = AccuracyCalculator(
        include=("precision_at_1",), k=1, knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(torch.tensor(embeddings), torch.tensor(labels))["precision_at_1"]
    assert theirs > truth["hit@1"]  # the fault is still there


def test_fault_11_memory_does_not_grow_with_the_square_of_the_samples() -> None:
    """With k=None all N - 1 neighbours of all N samples are held at once: 6 GiB at 10,000 samples."""
    peaks = []
    for samples in (2000, 8000):
        embeddings = np.random.default_rng(0).normal(size=(samples, 32)).astype(np.float32)
        labels = np.arange(samples) // 4
        tracemalloc.start()
        evaluate_embeddings(embeddings, labels)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 60e6  # the similarities alone would be 256 MB
    assert peaks[1] < 4 * peaks[0]

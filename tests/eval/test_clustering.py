"""cluster_agreement against pytorch-metric-learning's NMI and AMI of the same clustering."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import KMeans

from nearfar.errors import InputError, MissingDependencyError
from nearfar.eval import cluster_agreement


def clustered(noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 300)
    return rng.normal(size=(12, 16))[labels] + noise * rng.normal(size=(300, 16)), labels


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
def test_equals_pytorch_metric_learning(noise: float) -> None:
    embeddings, labels = clustered(noise)
    unit = torch.nn.functional.normalize(torch.tensor(embeddings))

    def kmeans(x: torch.Tensor, count: int) -> torch.Tensor:
        return torch.tensor(KMeans(count, n_init=1, random_state=3).fit_predict(x.numpy()))

    calculator = AccuracyCalculator(include=("NMI", "AMI"), kmeans_func=kmeans, device=torch.device("cpu"))
    wanted = calculator.get_accuracy(unit, torch.tensor(labels))
    result = cluster_agreement(embeddings, [f"class {label}" for label in labels], seed=3)
    assert result.nmi == pytest.approx(wanted["NMI"], abs=1e-9)
    assert result.ami == pytest.approx(wanted["AMI"], abs=1e-9)
    assert result.clusters == 12


def test_only_ami_is_near_zero_for_random_embeddings() -> None:
    rng = np.random.default_rng(0)
    result = cluster_agreement(rng.normal(size=(200, 8)), np.arange(200) % 50)
    assert abs(result.ami) < 0.1 < 0.5 < result.nmi


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        cluster_agreement(*clustered(1.0))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="2 labels for 3"):
        cluster_agreement(np.ones((3, 2)), [0, 0])

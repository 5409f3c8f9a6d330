"""score_histogram against numpy on the full matrix."""

from __future__ import annotations

import numpy as np
import pytest

import nearfar.eval.thresholds.histograms as module
from nearfar.errors import InputError
from nearfar.eval.thresholds.histograms import score_histogram


def labelled_set() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    centres = rng.normal(size=(30, 8))
    return centres[labels] + 0.7 * rng.normal(size=(len(labels), 8)), rng.permutation(labels)


def test_equals_numpy_on_all_pairs() -> None:
    embeddings, labels = labelled_set()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows, columns = np.triu_indices(len(unit), 1)
    cosines, same = (unit @ unit.T)[rows, columns], labels[rows] == labels[columns]
    result = score_histogram(embeddings, labels, bins=40)
    for density, mask in ((result.positive, same), (result.negative, ~same)):
        wanted, edges = np.histogram(cosines[mask], bins=40, range=(-1, 1), density=True)
        np.testing.assert_allclose(density, wanted, atol=1e-12)
        np.testing.assert_allclose(result.edges, edges, atol=1e-12)
    assert (result.positive_pairs, result.negative_pairs) == (same.sum(), (~same).sum())
    assert not result.sampled


def test_a_sample_of_the_pairs_is_unbiased_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = labelled_set()
    exact = score_histogram(embeddings, labels, bins=20)
    monkeypatch.setattr(module, "EXACT_PAIRS", 10)
    monkeypatch.setattr(module, "SAMPLED_PAIRS", 400_000)
    sampled, again, other = (score_histogram(embeddings, labels, bins=20, seed=seed) for seed in (0, 0, 1))
    assert sampled.sampled
    for name in ("positive", "negative"):
        drawn, true = getattr(sampled, name), getattr(exact, name)
        # Five standard errors of a share of 400,000 draws, as a density of bins 0.1 wide.
        share = true * 0.1
        np.testing.assert_array_less(abs(drawn - true), 5 * np.sqrt(share * (1 - share) / 400_000) / 0.1 + 1e-9)
        np.testing.assert_array_equal(drawn, getattr(again, name))
    assert (sampled.negative != other.negative).any()


def test_equal_vectors_fall_in_the_last_bin() -> None:
    result = score_histogram(np.tile([0.1, 0.2, 0.3], (6, 1)), [0, 0, 0, 1, 1, 1], bins=10)
    assert result.positive[-1] == pytest.approx(5)
    assert result.negative.sum() == pytest.approx(5)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="bins is 0"):
        score_histogram(np.eye(3), [0, 0, 1], bins=0)
    with pytest.raises(InputError, match="one sample only"):
        score_histogram(np.eye(3), [0, 1, 2])

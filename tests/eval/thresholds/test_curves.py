"""Curves against scikit-learn and naive loops over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from nearfar.errors import InputError
from nearfar.eval.thresholds import histograms
from nearfar.eval.thresholds.curves import pair_curves

WIDTH = 2 / 100_000


def clusters(samples=300, classes=30, noise=0.8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    return rng.normal(size=(classes, 16))[labels] + noise * rng.normal(size=(samples, 16)), labels


def all_pairs(embeddings, labels):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows, columns = np.triu_indices(len(unit), k=1)
    return (unit @ unit.T)[rows, columns], labels[rows] == labels[columns]


def test_rates_equal_those_of_a_loop_at_every_threshold():
    embeddings, labels = clusters()
    scores, same = all_pairs(embeddings, labels)
    curves = pair_curves(embeddings, labels)
    for threshold, far, frr in zip(curves.thresholds, curves.far, curves.frr, strict=True):
        near = int((np.abs(scores - threshold) < 1e-12).sum())
        assert abs(far - (scores[~same] >= threshold).mean()) <= near / (~same).sum() + 1e-12
        assert abs(frr - (scores[same] < threshold).mean()) <= near / same.sum() + 1e-12
    assert (np.diff(curves.far) <= 0).all()
    assert (np.diff(curves.frr) >= 0).all()
    assert (curves.far[0], curves.frr[0], curves.far[-1], curves.frr[-1]) == (1, 0, 0, 1)


def test_area_and_equal_error_rate_against_scikit_learn():
    embeddings, labels = clusters(noise=1.2)
    scores, same = all_pairs(embeddings, labels)
    curves = pair_curves(embeddings, labels)
    assert curves.auc == pytest.approx(roc_auc_score(same, scores), abs=1e-4)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    at = int(np.argmin(np.abs(far - (1 - tar))))
    assert curves.eer == pytest.approx((far[at] + 1 - tar[at]) / 2, abs=1 / same.sum() + 1e-4)
    assert curves.eer_threshold == pytest.approx(thresholds[at], abs=0.01)
    assert 0.01 < curves.eer < 0.4


def test_operating_points_keep_their_level_and_no_laxer_threshold_does():
    embeddings, labels = clusters()
    scores, same = all_pairs(embeddings, labels)
    curves = pair_curves(embeddings, labels)
    assert [point.level for point in curves.operating_points] == [1e-1, 1e-2, 1e-3]  # 1e-4 would be 4 pairs
    for point in curves.operating_points:
        assert point.far == pytest.approx((scores[~same] >= point.threshold).mean())
        assert point.far <= point.level < (scores[~same] >= point.threshold - WIDTH).mean()
        assert point.tar == pytest.approx((scores[same] >= point.threshold).mean())
        far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
        assert point.tar == pytest.approx(tar[far <= point.level].max(), abs=2 / same.sum())


def test_a_set_that_one_threshold_parts():
    curves = pair_curves(np.repeat(np.eye(6), 4, axis=0), np.repeat(np.arange(6), 4), far_levels=[0.1])
    assert (curves.eer, curves.auc) == (0, 1)
    assert 0 < curves.eer_threshold < 1
    assert curves.operating_points[0].tar == 1


def test_one_point_for_all_tells_nothing():
    curves = pair_curves(np.ones((20, 3)), np.arange(20) % 4)
    assert curves.auc == pytest.approx(0.5)
    assert curves.eer == pytest.approx(0.5)


def test_a_sample_comes_near_all_pairs(monkeypatch):
    embeddings, labels = clusters(samples=600, noise=1.2)
    exact = pair_curves(embeddings, labels)
    monkeypatch.setattr(histograms, "EXACT_PAIRS", 1000)
    sampled = pair_curves(embeddings, labels, seed=3)
    assert sampled.sampled
    assert not exact.sampled
    # Two million draws: four standard errors of a share near the equal error rate.
    assert sampled.eer == pytest.approx(exact.eer, abs=4 * (0.25 / 2e6) ** 0.5 + WIDTH)
    assert sampled.auc == pytest.approx(exact.auc, abs=2e-3)
    again = pair_curves(embeddings, labels, seed=3)
    np.testing.assert_array_equal(again.far, sampled.far)


def test_few_points_stay_close_to_the_whole_curve():
    embeddings, labels = clusters(samples=1500, noise=1.2)
    scores, same = all_pairs(embeddings, labels)
    curves = pair_curves(embeddings, labels)
    assert len(curves.thresholds) <= 1002
    tar = 1 - curves.frr
    for threshold in np.linspace(-0.2, 0.9, 40):
        far, found = (scores[~same] >= threshold).mean(), (scores[same] >= threshold).mean()
        assert np.interp(far, curves.far[::-1], tar[::-1]) == pytest.approx(found, abs=0.02)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_equal_error_rate_lies_between_enclosing_rates(seed):
    embeddings, labels = clusters(samples=24, classes=4, seed=seed)
    labels[:8] = [0, 0, 1, 1, 2, 2, 3, 3]
    curves = pair_curves(embeddings, labels)
    scores, same = all_pairs(embeddings, labels)
    best = min(max((scores[~same] >= t).mean(), (scores[same] < t).mean()) for t in itertools.chain(scores, [1.1]))
    assert curves.eer <= best + 1e-3
    assert 0 <= curves.eer <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bins": 1}, "bins is 1"), ({"far_levels": [0.0]}, "far_levels holds 0.0"), ({"far_levels": [1.5]}, "holds 1.5")],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        pair_curves(*clusters(), **options)

"""calibrate_threshold, calibrate_classes and calibrate_no_answer."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import binom

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval import calibrate_classes, calibrate_no_answer, calibrate_threshold
from nearfar.eval.thresholds.bounds import MeanTest
from nearfar.eval.thresholds.units import class_set, positive_scores


def labelled(classes: int = 300, samples: int = 3, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), samples)
    points = rng.normal(size=(classes, 16))[labels] + noise * rng.normal(size=(len(labels), 16))
    return points, labels


RISKS = [
    ("far", 0.05, {}),
    ("miss", 0.1, {}),
    ("precision", 0.1, {"prior": 0.5}),
    ("class_far", 0.1, {}),
]


@pytest.mark.parametrize(("risk", "alpha", "options"), RISKS)
def test_every_risk_gives_a_card_that_says_what_it_promises(risk: str, alpha: float, options: dict) -> None:
    card = calibrate_threshold(*labelled(), risk=risk, alpha=alpha, **options)
    assert card.kind == "pair"
    assert card.units == {"far": 150, "miss": 300, "precision": 112, "class_far": 300}[risk]
    assert card.estimated_risk <= alpha
    assert card.certified_risk == (0.05 if risk == "class_far" else alpha)
    assert f"{alpha:.4g}" in card.promise
    assert any("drift" in sentence for sentence in card.assumptions)


@pytest.mark.parametrize(("risk", "alpha", "options"), RISKS)
def test_the_input_form_does_not_matter(risk: str, alpha: float, options: dict) -> None:
    points, labels = labelled()
    names = [f"c{label:03}" for label in labels]  # zero-padded: strings sort as the integers do
    one = calibrate_threshold(points.astype(np.float32), labels, risk=risk, alpha=alpha, **options)
    other = calibrate_threshold(torch.tensor(points).float() * 7, names, risk=risk, alpha=alpha, **options)
    assert one.threshold == pytest.approx(other.threshold, abs=3e-6)


@pytest.mark.parametrize(("risk", "alpha", "options"), RISKS)
def test_a_smaller_alpha_is_stricter(risk: str, alpha: float, options: dict) -> None:
    loose = calibrate_threshold(*labelled(600), risk=risk, alpha=alpha, **options).threshold
    strict = calibrate_threshold(*labelled(600), risk=risk, alpha=alpha / 1.5, **options).threshold
    assert strict < loose if risk == "miss" else strict > loose


def test_miss_takes_the_largest_threshold_that_is_certified() -> None:
    points, labels = labelled(200)
    card = calibrate_threshold(points, labels, risk="miss", alpha=0.1)
    test = MeanTest.of(0.1, 200, 0.05)
    scores = positive_scores(class_set(points, labels), np.arange(200))
    assert test.refutes(1 - scores.share_at_least(card.threshold))
    assert not test.refutes(1 - scores.share_at_least(card.threshold + 3e-6))


@pytest.mark.parametrize(
    ("risk", "alpha", "options"),
    [
        ("far", 0.001, {}),
        ("miss", 0.001, {}),
        ("precision", 0.001, {"prior": 0.5}),
        ("precision", 0.1, {"prior": 0.01}),
        ("class_far", 0.001, {}),
    ],
)
def test_too_little_data_is_refused_with_an_alpha_that_works(risk: str, alpha: float, options: dict) -> None:
    points, labels = labelled(200)
    with pytest.raises(InputError, match=f"cannot certify alpha={alpha}") as caught:
        calibrate_threshold(points, labels, risk=risk, alpha=alpha, **options)
    named = re.search(r"smallest alpha they can is ([\d.e-]+\d)", str(caught.value))
    assert named is not None
    smallest = float(named[1])
    assert calibrate_threshold(points, labels, risk=risk, alpha=smallest, **options).alpha == smallest
    with pytest.raises(InputError, match="cannot certify"):
        calibrate_threshold(points, labels, risk=risk, alpha=smallest * 0.9, **options)


def test_duplicates_across_classes_are_named_as_what_no_threshold_separates() -> None:
    points = np.ones((100, 4))
    with pytest.raises(InputError, match="they certify none"):
        calibrate_threshold(points, np.repeat(np.arange(50), 2), risk="far", alpha=0.2)


def test_too_few_classes_for_beta_are_refused_with_a_beta_that_works() -> None:
    points, labels = labelled(40)
    with pytest.raises(InputError, match="smallest beta they can is") as caught:
        calibrate_threshold(points, labels, risk="class_far", alpha=0.1, reference=labelled(50, seed=9)[0])
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    options = {"risk": "class_far", "alpha": 0.1, "reference": labelled(50, seed=9)[0]}
    assert calibrate_threshold(points, labels, beta=smallest, **options).beta == smallest


def test_class_far_against_a_reference_takes_fifty_nine_classes_and_their_maximum() -> None:
    points, labels = labelled(59)
    reference = labelled(80, seed=5)[0]
    card = calibrate_threshold(points, labels, risk="class_far", alpha=0.02, reference=reference)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    others = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    own = []
    for code in range(59):
        scores = np.sort((unit[labels == code] @ others.T).ravel())[::-1]
        own.append(scores[math.floor(0.02 * len(scores))])
    assert card.threshold == pytest.approx(max(own), abs=2e-6)
    assert card.threshold > max(own)
    assert card.reference_samples == 240
    assert card.failing_classes == ()


def test_failing_classes_are_those_above_alpha_worst_first() -> None:
    points, labels = labelled(150)
    points[:60] = 3.0 + np.random.default_rng(1).normal(size=(60, 16))  # the first 20 classes crowd together
    card = calibrate_threshold(points, labels, risk="far", alpha=0.05)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    accepted = unit @ unit.T >= card.threshold
    wanted = {}
    for code in range(150):
        rate = accepted[np.ix_(labels == code, labels != code)].mean()
        if rate > 0.05:
            wanted[code] = rate
    assert {failure.label: failure.rate for failure in card.failing_classes} == pytest.approx(wanted)
    rates = [failure.rate for failure in card.failing_classes]
    assert rates == sorted(rates, reverse=True)
    assert rates


def test_large_and_single_classes_are_taken() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.zeros(300, int), np.repeat(np.arange(1, 120), 2), np.arange(200, 260)])
    points = rng.normal(size=(300, 8))[labels] + 0.2 * rng.normal(size=(len(labels), 8))
    far = calibrate_threshold(points, labels, risk="far", alpha=0.1)
    miss = calibrate_threshold(points, labels, risk="miss", alpha=0.1)
    assert (far.units, miss.units) == (90, 120)


def test_the_same_seed_gives_the_same_threshold() -> None:
    one, two = (calibrate_threshold(*labelled(), risk="far", alpha=0.05, seed=3) for _ in range(2))
    assert one.threshold == two.threshold


@pytest.mark.parametrize("risk", ["far", "miss"])
def test_the_bootstrap_says_that_it_is_approximate(risk: str) -> None:
    points, labels = labelled()
    card = calibrate_threshold(points, labels, risk=risk, alpha=0.05, method="bootstrap")
    exact = calibrate_threshold(points, labels, risk=risk, alpha=0.05)
    assert card.certified_risk is None
    assert card.promise.startswith("Approximately")
    assert "bootstrap" in card.assumptions[0]
    assert card.estimated_risk <= 0.05
    assert card.threshold < exact.threshold if risk == "far" else card.threshold > exact.threshold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risk": "no_answer", "alpha": 0.1}, "calibrate_no_answer"),
        ({"risk": "far", "alpha": 0.0}, "alpha is 0.0"),
        ({"risk": "far", "alpha": 0.1, "delta": 1.0}, "delta is 1.0"),
        ({"risk": "far", "alpha": 0.1, "unit": "classes"}, "'class_pairs'"),
        ({"risk": "far", "alpha": 0.1, "beta": 0.1}, "beta belongs to"),
        ({"risk": "miss", "alpha": 0.1, "prior": 0.1}, "prior belongs to"),
        ({"risk": "precision", "alpha": 0.1}, "needs prior="),
        ({"risk": "class_far", "alpha": 0.1, "method": "bootstrap"}, "offered for"),
        ({"risk": "class_far", "alpha": 0.1, "reference": np.ones((3, 5))}, "5 dimensions"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate_threshold(*labelled(60), **options)


def test_unknown_risks_are_named() -> None:
    with pytest.raises(UnknownNameError, match="class_far"):
        calibrate_threshold(*labelled(60), risk="classfar", alpha=0.1)


def test_class_thresholds_are_stricter_for_all_at_once_than_for_each_alone() -> None:
    points, labels = labelled()
    joint = calibrate_classes(points, labels, alpha=0.1)
    each = calibrate_classes(points, labels, alpha=0.1, joint=False)
    assert (joint.scope, each.scope) == ("joint", "each")
    assert "each class alone" in each.promise
    assert all(a > b for a, b in zip(joint.thresholds, each.thresholds, strict=True))
    assert type(joint).from_json(joint.to_json()) == joint
    assert joint[17] == joint.thresholds[17]
    with pytest.raises(InputError, match="no threshold for class 999"):
        joint[999]


def test_class_thresholds_refuse_too_few_classes_with_an_alpha_that_works() -> None:
    points, labels = labelled(60)
    with pytest.raises(InputError, match="smallest alpha they can is") as caught:
        calibrate_classes(points, labels, alpha=0.05)
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    assert None not in calibrate_classes(points, labels, alpha=smallest).thresholds


def test_no_answer_is_the_exact_binomial() -> None:
    scores = np.random.default_rng(0).normal(0.3, 0.1, 300)
    card = calibrate_no_answer(scores, alpha=0.05, corpus_size=100)
    answered = int((scores >= card.threshold).sum())
    assert binom.cdf(answered, 300, 0.05) <= 0.05 < binom.cdf(answered + 1, 300, 0.05)
    next_score = np.sort(scores)[::-1][answered]
    assert 0 < card.threshold - next_score < 2e-6
    assert card.estimated_risk == answered / 300
    assert (card.kind, card.unit, card.corpus_size) == ("query", "queries", 100)


def test_no_answer_with_groups_counts_groups() -> None:
    rng = np.random.default_rng(0)
    scores = (0.3 + 0.1 * rng.normal(size=(200, 1)) + 0.01 * rng.normal(size=(200, 5))).ravel()
    groups = [f"need {need}" for need in np.repeat(np.arange(200), 5)]
    alone = calibrate_no_answer(scores, alpha=0.05, corpus_size=100)
    grouped = calibrate_no_answer(scores, alpha=0.05, corpus_size=100, groups=groups)
    assert (grouped.unit, grouped.units) == ("groups", 200)
    assert grouped.threshold > alone.threshold


def test_no_answer_refuses_too_few_queries_with_an_alpha_that_works() -> None:
    with pytest.raises(InputError, match="20 independent queries cannot certify") as caught:
        calibrate_no_answer(np.linspace(0.1, 0.6, 20), alpha=0.05, corpus_size=10)
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    assert smallest == pytest.approx(1 - 0.05 ** (1 / 20), rel=0.1)
    assert calibrate_no_answer(np.linspace(0.1, 0.6, 20), alpha=smallest, corpus_size=10).threshold > 0.6


def test_no_answer_refuses_what_no_cosine_separates() -> None:
    with pytest.raises(InputError, match=r"cannot certify alpha=0\.1"):
        calibrate_no_answer(np.full(100, 1.0), alpha=0.1, corpus_size=10)
    assert calibrate_no_answer(np.full(100, 1.0), alpha=0.1, corpus_size=10, metric="inner_product").threshold > 1


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "at least one"),
        ([[0.1]], {}, "one score per query"),
        ([0.1, math.nan], {}, "top score 1 is nan"),
        ([0.1], {"corpus_size": 0}, "corpus_size is 0"),
        ([0.1, 0.2], {"groups": [1]}, "one label per query"),
    ],
)
def test_malformed_queries_are_refused(scores: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate_no_answer(scores, **{"alpha": 0.1, "corpus_size": 5, **options})

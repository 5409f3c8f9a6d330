"""ThresholdCard: storing, the two kinds, and the drift check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binom

from nearfar.errors import DataFileError, InputError, ModelMismatchError
from nearfar.eval import ThresholdCard, calibrate_no_answer, calibrate_threshold


def labelled(classes: int = 300, seed: int = 0, noise: float = 0.3, pull: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 3)
    points = rng.normal(size=(classes, 16))[labels] + noise * rng.normal(size=(len(labels), 16))
    points[:, 0] += pull  # draws all classes together
    return points, labels


@pytest.fixture(scope="module")
def far_card() -> ThresholdCard:
    return calibrate_threshold(
        *labelled(), risk="far", alpha=0.05, encoder="0123456789abcdef", prompts={"query": "find: "}
    )


@pytest.fixture(scope="module")
def query_card() -> ThresholdCard:
    scores = np.random.default_rng(0).normal(0.3, 0.1, 200)
    return calibrate_no_answer(scores, alpha=0.05, corpus_size=1000, encoder="0123456789abcdef")


def test_json_and_file_round_trips(far_card: ThresholdCard, query_card: ThresholdCard, tmp_path: Path) -> None:
    for card in (far_card, query_card):
        assert ThresholdCard.from_json(card.to_json()) == card
        path = card.save(tmp_path / "deep" / "card.json")
        assert ThresholdCard.load(path) == card
        assert [item.name for item in path.parent.iterdir()] == ["card.json"]
    strings = calibrate_threshold(labelled()[0], [f"{x}" for x in labelled()[1]], risk="far", alpha=0.05)
    assert all(isinstance(failure.label, str) for failure in ThresholdCard.from_json(strings.to_json()).failing_classes)


def test_a_failed_write_leaves_the_old_card(
    far_card: ThresholdCard, query_card: ThresholdCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = far_card.save(tmp_path / "card.json")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(DataFileError, match="No space left"):
        query_card.save(path)
    assert ThresholdCard.load(path) == far_card
    assert len(list(tmp_path.iterdir())) == 1


def test_cards_are_frozen(far_card: ThresholdCard) -> None:
    with pytest.raises(ValidationError):
        far_card.threshold = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "query"}, "only no_answer"),
        ({"alpha": 1.5}, "alpha"),
        ({"surprise": 1}, "surprise"),
        ({"format_version": 2}, "format_version"),
    ],
)
def test_altered_cards_are_refused(far_card: ThresholdCard, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**json.loads(far_card.to_json()), **change}))
    with pytest.raises(DataFileError, match=message):
        ThresholdCard.load(path)
    with pytest.raises(InputError, match="not a threshold card"):
        ThresholdCard.from_json(path.read_text())


def test_unreadable_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot be read"):
        ThresholdCard.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"kind": "pa')
    with pytest.raises(DataFileError, match="not a threshold card"):
        ThresholdCard.load(tmp_path / "half.json")


def test_pair_and_query_cards_are_never_interchanged(far_card: ThresholdCard, query_card: ThresholdCard) -> None:
    with pytest.raises(InputError, match=r"this is a pair card .* calibrate_no_answer"):
        far_card.require("query")
    with pytest.raises(InputError, match=r"this is a query card .* calibrate_threshold"):
        query_card.require("pair")
    assert far_card.require("pair", metric="cosine", encoder="0123456789abcdef", score_source="exact") == []


def test_cards_are_refused_for_other_scores(query_card: ThresholdCard) -> None:
    with pytest.raises(InputError, match="metric is 'cosine' and the scores' is 'l2'"):
        query_card.require("query", metric="l2")
    with pytest.raises(InputError, match="score source is 'exact'"):
        query_card.require("query", score_source="compressed")
    with pytest.raises(ModelMismatchError, match="belongs to the encoder 0123456789abcdef"):
        query_card.require("query", encoder="fedcba9876543210")
    with pytest.raises(ModelMismatchError, match="names no encoder"):
        calibrate_threshold(*labelled(), risk="far", alpha=0.05).require("pair", encoder="fedcba9876543210")


def test_a_corpus_that_grew_by_more_than_a_quarter_is_warned_of(query_card: ThresholdCard) -> None:
    assert query_card.require("query", corpus_size=1250) == []
    assert "grown from 1000 to 1251" in query_card.require("query", corpus_size=1251)[0]


RISKS = [
    ("far", 0.05, {}, {"pull": 3.0}),
    ("miss", 0.1, {}, {"noise": 1.0}),
    ("precision", 0.1, {"prior": 0.5}, {"pull": 3.0}),
    ("class_far", 0.1, {}, {"pull": 3.0}),
    ("class_far", 0.1, {"reference": labelled(100, seed=3)[0]}, {"noise": 0.3, "pull": 3.0}),
]


@pytest.mark.parametrize(("risk", "alpha", "options", "drift"), RISKS)
def test_drift_is_found_and_its_absence_too(risk: str, alpha: float, options: dict, drift: dict) -> None:
    card = calibrate_threshold(*labelled(), risk=risk, alpha=alpha, **options)
    known = {key: value for key, value in options.items() if key == "reference"}
    calm = card.check(*labelled(seed=1), **known)
    assert not calm.contradicted
    assert calm.exact == (risk != "class_far" or "reference" in options)
    if "reference" in options:
        known["reference"] = labelled(100, seed=3, pull=3.0)[0]
    alarm = card.check(*labelled(seed=2, **drift), **known)
    assert alarm.contradicted, alarm.verdict
    assert alarm.p_value < 0.01
    assert "calibrate again" in alarm.verdict


def test_the_query_check_is_an_exact_binomial_test(query_card: ThresholdCard) -> None:
    scores = np.random.default_rng(1).normal(0.35, 0.1, 150)
    result = query_card.check(scores)
    answered = int((scores >= query_card.threshold).sum())
    assert result.observed_risk == answered / 150
    assert result.p_value == pytest.approx(binom.sf(answered - 1, 150, 0.05))


def test_false_alarms_are_no_more_frequent_than_the_level() -> None:
    # A cosine threshold whose true false-accept rate is exactly alpha: directions on a circle, alpha = angle / pi.
    base = calibrate_threshold(*labelled(), risk="far", alpha=0.2)
    card = base.model_copy(update={"threshold": float(np.cos(0.2 * np.pi))})
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng([5, seed])
        angles = np.repeat(rng.uniform(0, 2 * np.pi, 100), 2) + 0.3 * rng.normal(size=200)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        alarms += card.check(points, np.repeat(np.arange(100), 2), level=0.1, seed=seed).contradicted
    assert alarms > 0
    assert binom.sf(alarms - 1, 300, 0.1) > 1e-3


def test_the_check_refuses_data_of_the_other_kind(far_card: ThresholdCard, query_card: ThresholdCard) -> None:
    with pytest.raises(InputError, match="query card: give the top scores"):
        query_card.check(*labelled())
    with pytest.raises(InputError, match="pair card: give embeddings"):
        far_card.check([0.1, 0.2])
    with pytest.raises(InputError, match="takes no reference"):
        far_card.check(*labelled(), reference=labelled()[0])
    with pytest.raises(InputError, match="level is 0"):
        far_card.check(*labelled(), level=0)

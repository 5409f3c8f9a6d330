"""Thresholds in an index: kept through crashes and adds, refused where they do not fit, and cutting searches."""

from __future__ import annotations

import errno
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from nearfar.errors import DataFileError, IndexCorruptError, InputError, ModelMismatchError, UnknownNameError
from nearfar.eval import ThresholdCard, calibrate_no_answer, calibrate_threshold
from nearfar.retrieval import EncoderFingerprint, VectorIndex

ENCODER = EncoderFingerprint(weights="ab", tokenizer="cd", modules=["Pooling {}"])
ROWS = 40


def query_card(threshold: float, **changes: object) -> ThresholdCard:
    options = {"alpha": 0.05, "corpus_size": ROWS, "encoder": ENCODER.digest}
    return calibrate_no_answer(np.full(60, threshold), **{**options, **changes})  # type: ignore[arg-type]


def pair_card(encoder: str | None = None) -> ThresholdCard:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 3)
    points = rng.normal(size=(100, 8))[labels] + 0.1 * rng.normal(size=(300, 8))
    return calibrate_threshold(points, labels, risk="far", alpha=0.2, encoder=encoder or ENCODER.digest)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    with VectorIndex.create(tmp_path / "index", dimension=8, encoder=ENCODER) as index:
        index.add(vectors, [f"{row}" for row in range(ROWS)])
    return tmp_path / "index"


def test_only_scores_that_reach_the_threshold_are_kept(folder: Path, vectors: np.ndarray) -> None:
    queries = np.random.default_rng(2).standard_normal((25, 8))
    card = query_card(0.5)
    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("search", card)
        found = index.search(queries, 10, matches_only=True)
        everything = index.search(queries, 10)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ unit.T  # (25, ROWS)
    for query, row in enumerate(scores):
        expected = [f"{i}" for i in np.argsort(-row)[:10] if row[i] >= card.threshold]
        assert [hit.id for hit in found[query]] == expected
        assert found.counts[query] == len(expected)
        assert found.ids[query].tolist() == expected + [None] * (10 - len(expected))
        assert np.isneginf(found.scores[query, len(expected) :]).all()
    assert 0 < found.counts.sum() < everything.counts.sum()
    assert 0 in found.counts
    assert everything.counts.tolist() == [10] * 25


def test_a_score_equal_to_the_threshold_is_a_match_and_one_below_it_is_not(folder: Path) -> None:
    with VectorIndex.open(folder) as index:
        query = np.ones(8)
        third = float(index.search(query, 3).scores[0, 2])
        card = query_card(0.5)
        at = card.model_copy(update={"threshold": third})
        above = card.model_copy(update={"threshold": float(np.nextafter(third, 1.0))})  # apart in float64 only
        assert index.search(query, 10, matches_only=at).counts.tolist() == [3]
        assert index.search(query, 10, matches_only=above).counts.tolist() == [2]


def test_thresholds_are_kept_by_name_through_adds(folder: Path) -> None:
    strict, loose, pair = query_card(0.9), query_card(0.3), pair_card()
    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("strict", loose)
        index.set_threshold("strict", strict)  # replaces
        index.set_threshold("duplicates", pair)
        assert index.search(np.ones(8), 5, matches_only=True).counts[0] <= 5  # the only query card
        index.set_threshold("loose", loose)
        index.add(np.ones((1, 8)), ["new"])
        index.verify()
    with VectorIndex.open(folder) as index:
        assert index.threshold("strict") == strict
        assert index.threshold("loose") == loose
        assert index.threshold("duplicates") == pair
        info = json.loads(json.dumps(index.info()))
        assert info["generation"] == 6
        assert info["thresholds"]["loose"] == {
            "kind": "query", "threshold": loose.threshold, "risk": "no_answer", "alpha": 0.05, "delta": 0.05,
            "corpus_size": ROWS,
        }  # fmt: skip
        assert len(index.search(np.ones(8), ROWS, matches_only="strict")[0]) == 1
        assert len(index.search(np.ones(8), ROWS, matches_only="loose")[0]) > 1
        with pytest.raises(InputError, match=r"several thresholds \(loose, strict\); name one"):
            index.search(np.ones(8), 5, matches_only=True)
        with pytest.raises(UnknownNameError, match="did you mean strict"):
            index.search(np.ones(8), 5, matches_only="strikt")
        with pytest.raises(InputError, match="opened for reading"):
            index.set_threshold("more", loose)
        with pytest.raises(InputError, match="opened for reading"):
            index.remove_threshold("loose")
    with VectorIndex.open(folder, writable=True) as index:
        index.remove_threshold("loose")
        index.remove_threshold("duplicates")
        assert index.threshold() == strict
        with pytest.raises(UnknownNameError, match="loose"):
            index.remove_threshold("loose")
        index.remove_threshold("strict")
        assert index.info()["thresholds"] == {}


def test_without_a_threshold_the_command_that_makes_one_is_named(folder: Path) -> None:
    with VectorIndex.open(folder, writable=True) as index:
        for ask in (True, "strict"):
            with pytest.raises(InputError, match=r"nearfar calibrate --index .*index --unanswerable"):
                index.search(np.ones(8), 5, matches_only=ask)
        with pytest.raises(InputError, match="nearfar calibrate"):
            index.threshold()
        index.set_threshold("duplicates", pair_card())
        with pytest.raises(InputError, match=r"holds no query threshold; .*nearfar calibrate"):
            index.search(np.ones(8), 5, matches_only=True)


def test_cards_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with VectorIndex.open(folder, writable=True) as index:
        before = (folder / "manifest.json").read_bytes()
        for encoder in ("0123456789abcdef", None):
            with pytest.raises(ModelMismatchError, match=ENCODER.digest):
                index.set_threshold("x", query_card(0.5, encoder=encoder))
            with pytest.raises(ModelMismatchError, match=ENCODER.digest):
                index.search(np.ones(8), 5, matches_only=query_card(0.5, encoder=encoder))
        for card, message in (
            (query_card(-3.0, metric="l2"), "metric is 'l2' and the scores' is 'cosine'"),
            (query_card(0.5, score_source="compressed"), "score source is 'compressed'"),
        ):
            with pytest.raises(InputError, match=message):
                index.set_threshold("x", card)
            with pytest.raises(InputError, match=message):
                index.search(np.ones(8), 5, matches_only=card)
        with pytest.raises(InputError, match=r"a pair card .* and a query card is needed"):
            index.search(np.ones(8), 5, matches_only=pair_card())
        for name in ("", "  ", 3, None):
            with pytest.raises(InputError, match="name must be a text"):
                index.set_threshold(name, query_card(0.5))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"matches_only must be .* got 0\.5"):
            index.search(np.ones(8), 5, matches_only=0.5)  # type: ignore[arg-type]
        assert (folder / "manifest.json").read_bytes() == before
        index.set_threshold("pairs", pair_card())
        with pytest.raises(InputError, match=r"a pair card .* and a query card is needed"):
            index.search(np.ones(8), 5, matches_only="pairs")
    with VectorIndex.create(tmp_path / "bare", dimension=8) as bare:
        with pytest.raises(ModelMismatchError, match="the index records none"):
            bare.set_threshold("x", query_card(0.5))
        bare.set_threshold("x", query_card(0.5, encoder=None))


def test_l2_and_inner_product_are_cut_by_cards_of_their_own(tmp_path: Path, vectors: np.ndarray) -> None:
    with VectorIndex.create(tmp_path / "l2", dimension=8, metric="l2") as index:
        index.add(vectors, [f"{row}" for row in range(ROWS)])
        found = index.search(vectors[:4], ROWS, matches_only=query_card(-9.0, metric="l2", encoder=None))
    distances = ((vectors[:4, None] - vectors) ** 2).sum(axis=2)  # (4, ROWS)
    assert found.counts.tolist() == (distances < 9.0).sum(axis=1).tolist()


def test_growth_by_more_than_a_quarter_warns_once(folder: Path, vectors: np.ndarray) -> None:
    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("search", query_card(0.5))
        index.add(vectors[:10], [f"new-{row}" for row in range(10)])  # a quarter more
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            index.search(vectors, 5, matches_only=True)
        index.add(vectors[:1], ["one too many"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                index.search(vectors, 5, matches_only=True)
        assert [str(warning.message)[:44] for warning in caught] == [
            f"the corpus has grown from {ROWS} to {ROWS + 11} documents"
        ]
        assert caught[0].filename == __file__


def test_a_reader_keeps_its_thresholds_and_a_new_one_sees_the_change(folder: Path) -> None:
    with VectorIndex.open(folder) as reader, VectorIndex.open(folder, writable=True) as writer:
        writer.set_threshold("search", query_card(0.5))
        with pytest.raises(InputError, match="no query threshold"):
            reader.search(np.ones(8), 5, matches_only=True)
        with VectorIndex.open(folder) as later:
            assert later.threshold() == writer.threshold()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_generation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("search", query_card(0.5))
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(DataFileError, match="the disk is full"):
                index.set_threshold("more", query_card(0.7))
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        assert list(index.info()["thresholds"]) == ["search"]
        index.set_threshold("more", query_card(0.7))
    with VectorIndex.open(folder) as index:
        index.verify()
        assert sorted(index.info()["thresholds"]) == ["more", "search"]


def test_an_index_without_thresholds_stays_readable_by_older_versions(folder: Path) -> None:
    manifest = folder / "manifest.json"
    old = json.loads(manifest.read_text())
    assert (old["format_version"], "thresholds" in old) == (1, False)
    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("search", query_card(0.5))
        new = json.loads(manifest.read_text())
        assert (new["format_version"], list(new["thresholds"])) == (2, ["search"])
        index.remove_threshold("search")
    again = json.loads(manifest.read_text())
    assert (again["format_version"], "thresholds" in again) == (1, False)


def test_an_altered_card_is_found(folder: Path) -> None:
    with VectorIndex.open(folder, writable=True) as index:
        index.set_threshold("search", query_card(0.5))
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["thresholds"]["search"]["threshold"] = 0.1
    manifest.write_text(json.dumps(content))
    with pytest.raises(IndexCorruptError, match="checksum is wrong"):
        VectorIndex.open(folder)

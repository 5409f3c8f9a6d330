"""describe_geometry against naive loops and known shapes."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import scipy.stats
import torch

import nearfar.eval.geometry as geometry
import nearfar.eval.geometry_pairs as geometry_pairs
from nearfar.errors import InputError
from nearfar.eval import GeometryReport, describe_geometry


def labelled(seed: int, samples: int = 120, classes: int = 25, dimension: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    centres = rng.normal(size=(classes, dimension))
    return centres[labels] + 0.8 * rng.normal(size=(samples, dimension)) + 0.3, labels


def unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def naive_suspects(rows: np.ndarray, labels: list) -> list[tuple]:
    typical = {}
    for label in set(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        if len(members) > 1:
            typical[label] = np.median([rows[i] @ rows[j] for i, j in combinations(members, 2)])
    usual = np.median(list(typical.values()))
    found = []
    for i, j in combinations(range(len(rows)), 2):
        bars = [typical[label] for label in (labels[i], labels[j]) if label in typical] or [usual]
        if labels[i] != labels[j] and rows[i] @ rows[j] > min(bars):
            found.append((i, j, float(rows[i] @ rows[j]), (typical.get(labels[i]), typical.get(labels[j])), max(bars)))
    return sorted(found, key=lambda pair: pair[4] - pair[2])


@pytest.mark.parametrize("seed", range(4))
def test_every_measure_is_the_naive_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = labelled(seed)
    labels[:4] = [900, 901, 902, 903]  # single samples
    embeddings[1] = embeddings[0] + 1e-3  # two of them nearly the same
    monkeypatch.setattr(geometry_pairs, "_BLOCK_BYTES", 120 * 8 * 7)  # seven rows a block
    monkeypatch.setattr(geometry, "_BLOCK_BYTES", 8 * 12 * 11)
    report = describe_geometry(embeddings, labels, k=5, suspects=15)
    rows = unit(embeddings)
    n = len(rows)

    positives = [(i, j) for i, j in permutations(range(n), 2) if labels[i] == labels[j]]
    assert report.alignment == pytest.approx(np.mean([((rows[i] - rows[j]) ** 2).sum() for i, j in positives]))
    heat = [math.exp(-2 * ((rows[i] - rows[j]) ** 2).sum()) for i, j in combinations(range(n), 2)]
    assert report.uniformity == pytest.approx(math.log(np.mean(heat)))
    assert report.anisotropy == pytest.approx(np.mean([rows[i] @ rows[j] for i, j in combinations(range(n), 2)]))

    occurrences = np.zeros(n)
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j: -(rows[i] @ rows[j]))[:5]:
            occurrences[j] += 1
    assert report.hubness == pytest.approx(scipy.stats.skew(occurrences))
    assert report.antihub_share == np.mean(occurrences == 0)
    assert [count for _, count in report.hubs] == sorted(occurrences.tolist(), reverse=True)[:10]
    assert all(occurrences[row] == count for row, count in report.hubs)

    spectrum = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    assert report.participation_ratio == pytest.approx((spectrum**2).sum() ** 2 / (spectrum**4).sum())
    assert report.entropy_rank == pytest.approx(math.exp(scipy.stats.entropy(spectrum)))

    wanted = naive_suspects(rows, labels.tolist())
    assert report.suspect_count == len(wanted) > 15
    assert report.negative_pairs == sum(labels[i] != labels[j] for i, j in combinations(range(n), 2))
    assert len(report.suspects) == 15
    for suspect, (i, j, cosine, typical, _) in zip(report.suspects, wanted, strict=False):
        assert (suspect.first, suspect.second, suspect.labels) == (i, j, (labels[i], labels[j]))
        assert suspect.cosine == pytest.approx(cosine)
        assert suspect.typical == pytest.approx(typical)
    assert (0, 1) in [(i, j) for i, j, *_ in wanted]


def test_a_wrong_label_leads_the_list_under_its_name() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 32))
    labels = [f"class {i // 20}" for i in range(100)]
    embeddings = centres[np.arange(100) // 20] + 0.3 * rng.normal(size=(100, 32))
    labels[3] = "class 4"
    report = describe_geometry(embeddings, labels, ids=[f"text {i}" for i in range(100)])
    assert report.suspects
    assert all("text 3" in (s.first, s.second) for s in report.suspects)
    assert isinstance(report.hubs[0][0], str)


def test_a_sample_estimates_the_whole_and_says_its_size() -> None:
    embeddings, labels = labelled(0, samples=3000, classes=60, dimension=24)
    whole, part = describe_geometry(embeddings, labels), describe_geometry(embeddings, labels, sample=800)
    assert (whole.sampled_rows, part.sampled_rows, part.samples) == (3000, 800, 3000)
    assert part.uniformity == pytest.approx(whole.uniformity, abs=0.05)
    assert part.suspect_count / part.negative_pairs == pytest.approx(
        whole.suspect_count / whole.negative_pairs, rel=0.2
    )
    # Over all rows in both.
    for name in ("alignment", "anisotropy", "participation_ratio", "entropy_rank"):
        assert getattr(part, name) == getattr(whole, name)
    assert describe_geometry(embeddings, labels, sample=800) == part
    assert describe_geometry(embeddings, labels, sample=800, seed=1).uniformity != part.uniformity


def test_large_classes_are_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = labelled(1, samples=800, classes=2)
    whole = describe_geometry(embeddings, labels)
    monkeypatch.setattr(geometry_pairs, "_CLASS_SAMPLE", 100)
    part = describe_geometry(embeddings, labels)
    assert part.suspect_count != whole.suspect_count
    assert part.suspect_count == pytest.approx(whole.suspect_count, rel=0.3)


def test_an_even_sphere_is_as_theory_says() -> None:
    dimension = 64
    report = describe_geometry(np.random.default_rng(0).normal(size=(4000, dimension)))
    assert report.anisotropy == pytest.approx(0, abs=0.001)
    # E exp(4 c - 4) for the cosine c of even directions, whose variance is 1 / dimension.
    assert report.uniformity == pytest.approx(-4 + 8 / dimension, abs=0.01)
    assert report.participation_ratio == pytest.approx(dimension, rel=0.03)
    assert report.entropy_rank == pytest.approx(dimension, rel=0.03)
    assert report.warnings == [w for w in report.warnings if "hubs" in w]  # high dimension alone brings hubs
    assert (report.alignment, report.suspects, report.suspect_count, report.negative_pairs) == (None,) * 4


@pytest.mark.parametrize(
    ("shape", "words"),
    [("point", "collapsed to nearly one point"), ("cone", "narrow cone"), ("plane", "few directions")],
)
def test_collapse_is_told_in_words(shape: str, words: str) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(500, 100))
    if shape == "point":
        embeddings = 0.01 * embeddings + 1
    elif shape == "cone":
        embeddings += 1.2
    else:
        embeddings = rng.normal(size=(500, 2)) @ rng.normal(size=(2, 100))
    report = describe_geometry(embeddings)
    assert any(words in warning for warning in report.warnings)
    assert isinstance(report, GeometryReport)


def test_hubs_are_told_in_words() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1000, 1000))
    embeddings[7] = embeddings.mean(axis=0)  # near everything, in a space where all else is far apart
    report = describe_geometry(embeddings)
    assert report.hubs[0][0] == 7
    assert any("hubs" in warning for warning in report.warnings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_are_all_the_same(dtype: torch.dtype) -> None:
    report = describe_geometry(torch.full((50, 8), 0.3, dtype=dtype), [i % 5 for i in range(50)])
    assert report.anisotropy == pytest.approx(1, abs=1e-5)
    assert report.alignment == pytest.approx(0, abs=1e-5)
    assert report.uniformity == pytest.approx(0, abs=1e-5)
    assert (report.participation_ratio, report.entropy_rank) == (1, 1)
    assert sum(count for _, count in report.hubs) == pytest.approx(100)  # 500 places shared by 50 rows alike
    assert report.hubness == 0
    assert len(report.warnings) == 1
    assert report.suspect_count == 0


def test_float32_is_near_float64() -> None:
    embeddings, labels = labelled(2)
    wide, narrow = describe_geometry(embeddings, labels), describe_geometry(embeddings.astype(np.float32), labels)
    for name in ("alignment", "uniformity", "anisotropy", "participation_ratio", "entropy_rank"):
        assert getattr(narrow, name) == pytest.approx(getattr(wide, name), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 120}, "from 1 to 119"),
        ({"sample": 8}, "k is 10; with 8 rows"),
        ({"sample": 2}, "sample is 2"),
        ({"suspects": -1}, "suspects is -1"),
        ({"ids": ["a"]}, "1 ids for 120"),
        ({"labels": [1, 2]}, "2 labels for 120"),
    ],
)
def test_bad_options_are_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        describe_geometry(labelled(0)[0], **options)


def test_two_rows_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3"):
        describe_geometry([[1.0, 0.0], [0.0, 1.0]], k=1)

"""opis against the worked example, float64 loops over pairs, and simulations of its noise floor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import nearfar.eval.thresholds.accept_counts as counts_module
import nearfar.eval.thresholds.pairs as pairs_module
import nearfar.eval.thresholds.quantiles as quantiles_module
from nearfar.errors import InputError
from nearfar.eval.thresholds.accept_counts import StepTable
from nearfar.eval.thresholds.class_bootstrap import class_interval
from nearfar.eval.thresholds.opis import opis
from nearfar.eval.thresholds.pairs import l2_distances, pair_set
from nearfar.eval.thresholds.quantiles import negative_distance_quantiles

GRID = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
ANGLES = [0.0, 10, 25, 40, 70, 120, 125, 131]
LABELS = [0, 0, 0, 1, 1, 2, 2, 2]


def on_circle(degrees: list[float]) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def clustered(seed: int, sizes: list[int], noise: float, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes around random centres; `spread` makes some classes wider than others."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for label, size in enumerate(sizes):
        centre = rng.normal(size=32)
        width = noise * math.exp(spread * rng.normal()) / math.sqrt(32)
        rows.append(centre / np.linalg.norm(centre) + width * rng.normal(size=(size, 32)))
        labels += [label] * size
    return np.concatenate(rows), np.array(labels)


def brute_force(
    embeddings: np.ndarray, labels: list[int], min_class_size: int, epsilon: float, points: int
) -> tuple[float, float, np.ndarray]:
    """OPIS, epsilon-OPIS and the grid, by loops over pairs in float64."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    lengths = {
        (i, j): math.sqrt(max(0.0, 2 - 2 * float(unit[i] @ unit[j])))
        for i, j in itertools.combinations(range(len(unit)), 2)
    }
    negatives = [d for (i, j), d in lengths.items() if labels[i] != labels[j]]
    low, high = np.quantile(negatives, [0.01, 0.1])
    grid = np.linspace(low, high, points)
    curves = []
    for label in sorted(set(labels)):
        if labels.count(label) < min_class_size:
            continue
        inside = [d for (i, j), d in lengths.items() if labels[i] == labels[j] == label]
        across = [d for (i, j), d in lengths.items() if (labels[i] == label) != (labels[j] == label)]
        curve = []
        for threshold in grid:
            sensitivity = sum(d <= threshold for d in inside) / len(inside)
            specificity = sum(d > threshold for d in across) / len(across)
            total = sensitivity + specificity
            curve.append(2 * sensitivity * specificity / total if total else 0.0)
        curves.append(curve)
    utilities = np.array(curves)
    score = float(np.mean([np.mean((column - column.mean()) ** 2) for column in utilities.T]))
    ranking = sorted(range(len(utilities)), key=lambda row: (utilities[row].mean(), row))
    count = max(1, round(epsilon * len(utilities)))
    gap = utilities[ranking[-count:]].mean(axis=0) - utilities[ranking[:count]].mean(axis=0)
    return score, float(np.mean(gap**2)), grid


def test_worked_example() -> None:
    result = opis(on_circle(ANGLES), LABELS, epsilon=1 / 3, distances=GRID)
    np.testing.assert_allclose(
        result.utilities,
        [
            [0.5, 0.777778, 0.777778, 0.965517, 0.928571, 0.888889, 0.846154],
            [0, 0, 0, 0, 0.909091, 0.857143, 0.8],
            [1] * 7,
        ],
        atol=5e-7,
    )
    assert result.opis == pytest.approx(0.108815, abs=5e-7)
    assert result.epsilon_opis == pytest.approx(0.581239, abs=5e-7)
    assert result.far_range is None
    np.testing.assert_allclose(result.similarities, [1 - d * d / 2 for d in GRID], atol=1e-15)


def test_worked_example_of_the_calibration_range() -> None:
    result = opis(on_circle(ANGLES), LABELS)
    assert result.thresholds[[0, -1]] == pytest.approx([0.312370, 0.684040], abs=5e-7)
    assert (len(result.thresholds), result.negative_pairs) == (101, 21)


@pytest.mark.parametrize("min_class_size", [2, 4])
@pytest.mark.parametrize("seed", range(25))
def test_equals_loops_over_pairs(seed: int, min_class_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(seed).integers(1, 9, 6).tolist()
    sizes = [1, 5, 2, *drawn, 1, 12]  # singletons and unequal classes
    embeddings, labels = clustered(seed, sizes, noise=1.2)
    order = np.random.default_rng(seed).permutation(len(labels))
    embeddings, labels = embeddings[order], labels[order]
    monkeypatch.setattr(pairs_module, "_TILE", (5, 7))
    monkeypatch.setattr(counts_module, "_CHUNK", 10)
    monkeypatch.setattr(quantiles_module, "_SAMPLE", 100)  # so that brackets are narrow, and some miss
    score, gap, grid = brute_force(embeddings, labels.tolist(), min_class_size, 0.3, 21)
    result = opis(embeddings, labels, thresholds=21, epsilon=0.3, min_class_size=min_class_size)
    np.testing.assert_allclose(result.thresholds, grid, rtol=0, atol=1e-12)
    assert result.opis == pytest.approx(score, abs=1e-12)
    assert result.epsilon_opis == pytest.approx(gap, abs=1e-12)
    assert result.class_labels == [label for label, size in enumerate(sizes) if size >= min_class_size]
    assert result.excluded_classes == [label for label, size in enumerate(sizes) if size < min_class_size]
    assert result.class_sizes.tolist() == [size for size in sizes if size >= min_class_size]
    np.testing.assert_allclose(result.mean_utility, result.utilities.mean(axis=0), atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pairs_exactly_at_a_threshold_are_accepted(dtype: type) -> None:
    """Cosines that every precision holds exactly, most of them many times, and thresholds at their distances."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (60, 64))
    signs[::2] = signs[1::2]
    signs[::2, :20] *= rng.choice([-1.0, 1.0], (30, 20))
    labels = [n // 4 for n in range(60)]
    cosines = signs @ signs.T / 64
    grid = sorted({math.sqrt(2 - 2 * c) for c in cosines.ravel()})[1:20:2]
    result = opis((signs / 8).astype(dtype), labels, distances=grid)
    lengths = np.sqrt(2 - 2 * cosines)
    same = np.equal.outer(labels, labels)
    np.fill_diagonal(lengths, 9)
    for row, label in enumerate(result.class_labels):
        inside = np.array(labels) == label
        for column, threshold in enumerate(grid):
            sensitivity = (lengths[inside] <= threshold)[same[inside]].sum() / 12
            specificity = 1 - (lengths[inside] <= threshold)[~same[inside]].mean()
            wanted = 2 * sensitivity * specificity / (sensitivity + specificity) if sensitivity + specificity else 0
            assert result.utilities[row, column] == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("points", [1, 2, 101, 30_000])
def test_steps_are_the_first_distance_that_accepts(dtype: type, points: int) -> None:
    rng = np.random.default_rng(points)
    grid = np.unique(np.concatenate([rng.uniform(0, 2, points), [math.sqrt(2)]]))  # cosine 0 among them
    table = StepTable.of(grid, np.dtype(dtype))
    assert table.simple == (points <= 101)
    cosines = np.concatenate([rng.uniform(-1, 1, 5000).astype(dtype), table.cuts, np.array([0, 1], dtype)])
    cosines = np.concatenate([cosines, np.nextafter(cosines, dtype(2)), np.nextafter(cosines, dtype(-2))])
    wanted = np.searchsorted(grid, l2_distances(cosines), side="left")
    assert ((cosines >= table.cuts[-1]) == (wanted < len(grid))).all()
    near = wanted < len(grid)
    np.testing.assert_array_equal(table.steps(cosines[near]), wanted[near])


def test_float32_is_computed_in_float32_and_close_to_float64() -> None:
    embeddings, labels = clustered(0, [5] * 60, noise=1.2)
    wide, single = opis(embeddings, labels), opis(embeddings.astype(np.float32), labels)
    assert (single.thresholds != wide.thresholds).any()
    assert single.opis == pytest.approx(wide.opis, rel=1e-3)
    np.testing.assert_allclose(single.thresholds, wide.thresholds, atol=1e-6)


def test_a_sample_of_everything_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "_CHUNK", 50)
    embeddings, labels = clustered(2, [1, 30, 2, 7, 300, 4, 1, 60], noise=1.2)
    wanted = opis(embeddings, labels, distances=GRID)
    result = opis(embeddings, labels, distances=GRID, sample=len(labels))
    np.testing.assert_array_equal(result.utilities, wanted.utilities)
    assert (result.opis, result.sampling_error) == (wanted.opis, 0)
    assert result.noise_floor == pytest.approx(wanted.noise_floor, rel=1e-12)
    assert (result.sample, wanted.sample) == (len(labels), None)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "noise"), [(5, 1.2), (20, 0.9)])
def test_sampling_error_is_the_error_of_the_sample(size: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import nearfar.eval.thresholds.opis as opis_module

    monkeypatch.setattr(opis_module, "_QUANTILE_PAIRS", 400_000)
    embeddings, labels = clustered(5, [size] * (3000 // size), noise, spread=0.3)
    exact = opis(embeddings, labels)
    drawn = [opis(embeddings, labels, sample=300, seed=seed) for seed in range(60)]
    errors = np.array([result.opis - exact.opis for result in drawn])
    stated = np.array([result.sampling_error for result in drawn])
    assert abs(errors.mean()) < 3.0 * errors.std() / math.sqrt(len(errors))  # no bias
    assert 0.75 < errors.std() / math.sqrt((stated**2).mean()) < 1.33
    assert (abs(errors) < 2 * stated).mean() > 0.85
    assert errors.std() < 0.05 * exact.opis


@pytest.mark.parametrize("sample", [99, 41])
def test_a_sample_must_fit(sample: int) -> None:
    embeddings, labels = clustered(0, [5] * 8, noise=1.0)
    with pytest.raises(InputError, match=f"sample is {sample}"):
        opis(embeddings, labels, sample=sample)


def test_class_interval_covers_the_variance_of_the_population() -> None:
    inside, runs = 0, 150
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        utilities = rng.normal(size=(400, 1)) * 0.1 + 0.5 + rng.normal(size=(400, 4)) * 0.02
        low, high = class_interval(utilities, seed)
        inside += low <= 0.1**2 + 0.02**2 <= high
    assert 0.9 < inside / runs < 0.985


def test_interval_surrounds_opis_and_narrows_with_classes() -> None:
    few, many = (opis(*clustered(0, [6] * classes, 1.2, spread=0.3)) for classes in (40, 400))
    for result in (few, many):
        assert result.interval[0] < result.opis < result.interval[1]
    assert many.interval[1] - many.interval[0] < 0.5 * (few.interval[1] - few.interval[0])


def test_warns_when_most_of_it_is_noise() -> None:
    noisy = opis(*clustered(1, [2] * 250, 1.2, spread=0.3))
    assert noisy.warning is not None
    assert "more than half" in noisy.warning
    assert "2 samples in the typical class" in noisy.warning
    assert opis(*clustered(1, [30] * 60, 1.2, spread=0.5)).warning is None


@pytest.mark.parametrize("sample", [50, 1_000_000])
@pytest.mark.parametrize("levels", [[0.0, 1.0], [0.01, 0.1], [0.5, 0.500001], [0.25, 0.999]])
def test_blockwise_quantiles_equal_numpy(levels: list[float], sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles_module, "_SAMPLE", sample)
    monkeypatch.setattr(pairs_module, "_TILE", (32, 50))
    embeddings, labels = clustered(3, [4] * 40, noise=1.0)
    embeddings[5] = embeddings[80]  # equal distances across classes
    pairs = pair_set(embeddings, labels)
    lengths = np.sqrt(np.maximum(0, 2 - 2 * pairs.unit @ pairs.unit.T))
    rows, columns = np.triu_indices(len(lengths), 1)
    negative = pairs.codes[rows] != pairs.codes[columns]
    wanted = np.quantile(lengths[rows, columns][negative], levels)
    np.testing.assert_allclose(negative_distance_quantiles(pairs, levels), wanted, rtol=0, atol=1e-12)


def test_one_pass_finds_all_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, tiles = [], pairs_module.PairSet.tiles
    monkeypatch.setattr(pairs_module.PairSet, "tiles", lambda self: passes.append(self) or tiles(self))
    negative_distance_quantiles(pair_set(*clustered(3, [5] * 200, 0.3)), [0.1, 0.01, 0.5])
    assert len(passes) == 1


def test_labels_may_be_strings_and_tensors() -> None:
    embeddings, labels = clustered(0, [5] * 20, noise=1.0)
    wanted = opis(embeddings, labels)
    named = opis(torch.tensor(embeddings, requires_grad=True), [f"class {label:02}" for label in labels])
    assert (named.opis, named.noise_floor) == (wanted.opis, wanted.noise_floor)
    assert named.class_labels[:2] == ["class 00", "class 01"]
    assert opis(embeddings, torch.tensor(labels)).opis == wanted.opis


def test_only_the_noise_floor_depends_on_the_seed() -> None:
    embeddings, labels = clustered(0, [5] * 20, noise=1.0)
    first, again, other = (opis(embeddings, labels, seed=seed) for seed in (1, 1, 2))
    assert first.noise_floor == again.noise_floor != other.noise_floor
    assert first.noise_floor == pytest.approx(other.noise_floor, rel=0.05)
    assert first.opis == other.opis


@pytest.mark.parametrize(
    ("sizes", "noise"),
    [
        ([2] * 250, 1.0),
        ([3] * 250, 1.0),
        ([5] * 250, 1.0),
        ([10] * 150, 1.0),
        ([2] * 250, 1.6),
        ([3] * 250, 1.6),
        ([5] * 250, 1.6),
        ([10] * 150, 1.6),
        ([2, 3, 4, 5, 6, 10] * 40, 1.6),
    ],
)
def test_noise_floor_is_the_opis_of_classes_with_one_true_curve(sizes: list[int], noise: float) -> None:
    results = [opis(*clustered(seed, sizes, noise)) for seed in range(8)]
    observed = np.mean([result.opis for result in results])
    floor = np.mean([result.noise_floor for result in results])
    assert floor == pytest.approx(observed, rel=0.12)
    # A single set strays further than the mean of eight, yet little is left over.
    assert np.mean([result.corrected for result in results]) < 0.15 * observed


def test_corrected_tells_what_classes_truly_differ_by_whatever_their_size() -> None:
    """Classes of unequal width: raw OPIS falls with the class size, the corrected one stays."""
    raw, corrected = {}, {}
    for size in (5, 10, 20):
        results = [opis(*clustered(seed, [size] * 250, 1.2, spread=0.3)) for seed in range(4)]
        raw[size] = np.mean([result.opis for result in results])
        corrected[size] = np.mean([result.corrected for result in results])
    truth = corrected[20]
    assert truth == pytest.approx(raw[20], rel=0.1)
    assert raw[5] > 1.4 * truth
    for value in corrected.values():
        assert value == pytest.approx(truth, rel=0.25)


def test_two_samples_a_class_cannot_show_a_difference() -> None:
    result = opis(*clustered(1, [2] * 250, 1.2, spread=0.3))
    assert result.corrected < 0.02 * result.opis


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"far_range": (0.1, 0.01)}, "far_range"),
        ({"far_range": (0.0, 0.1)}, "far_range"),
        ({"thresholds": 1}, "thresholds is 1"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"min_class_size": 1}, "min_class_size is 1"),
        ({"min_class_size": 3, "distances": GRID}, None),
        ({"min_class_size": 4}, "0 of 3 classes"),
        ({"distances": [0.5, 0.4]}, "ascending"),
        ({"distances": [0.5, 2.5]}, "between 0 and 2"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str | None) -> None:
    if message is None:
        assert opis(on_circle(ANGLES), LABELS, **options).excluded_classes == [1]
        return
    with pytest.raises(InputError, match=message):
        opis(on_circle(ANGLES), LABELS, **options)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones(8), LABELS, "shape"),
        (np.full((8, 2), np.nan), LABELS, "row 0"),
        (on_circle(ANGLES), LABELS[:-1], "7 labels for 8"),
        (on_circle(ANGLES), list(range(8)), "one sample only"),
        (on_circle(ANGLES), [1] * 8, "at least two classes"),
        (np.ones((8, 2)), LABELS, "collapsed"),
    ],
)
def test_bad_input_is_named(embeddings: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opis(embeddings, labels)

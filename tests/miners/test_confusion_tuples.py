"""Tuples of an anchor, a positive, and negatives that a classifier confuses with the anchor's class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.miners import ConfusionTupleSampler

LABELS = np.repeat(np.arange(10), 12)


def tuples(sampler):
    rows = [row for batch in sampler for row in batch]
    return np.array(rows).reshape(-1, sampler.tuple_size)


def confused(labels=LABELS):
    random = np.random.default_rng(0)
    said = labels.copy()
    wrong = random.random(len(said)) < 0.4
    said[wrong] = random.integers(0, 10, wrong.sum())
    return said


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 7)), min_size=8, max_size=40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_any_labels_and_predictions(rows, negatives, per_batch, seed):
    labels, said = map(np.array, zip(*rows, strict=True))
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) <= negatives or sizes.max() < 2:
        with pytest.raises(InputError):
            ConfusionTupleSampler(labels, said, per_batch, negatives, seed=seed)
        return
    sampler = ConfusionTupleSampler(labels, said, per_batch, negatives, seed=seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(len(batch) == sampler.batch_size for batch in batches[:-1])
    found = tuples(sampler)
    able = np.flatnonzero(np.isin(labels, classes[sizes > 1]))
    assert sorted(found[:, 0]) == able.tolist()  # every anchor once
    assert (labels[found[:, 1]] == labels[found[:, 0]]).all()
    assert (labels[found[:, 2:]] != labels[found[:, :1]]).all()
    assert all(len(set(each)) == len(each) for each in found.tolist())


def test_positives_of_confused_anchors_are_classified_rightly():
    said = confused()
    found = tuples(ConfusionTupleSampler(LABELS, said))
    wrong = said[found[:, 0]] != LABELS[found[:, 0]]
    positives = found[wrong, 1]
    assert (said[positives] == LABELS[positives]).all()


def test_negatives_are_as_hard_as_the_shares_say():
    labels = np.repeat(np.arange(10), 100)  # so that no pool runs dry within a tuple
    said = confused(labels)
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    sampler = ConfusionTupleSampler(labels, said, negatives=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for anchor, _, *negatives in tuples(sampler).tolist():
            own = labels[anchor]
            for row in negatives:
                kind = counts[bool(said[anchor] == own)]
                kind[0] += 1
                kind[1] += said[row] == own
                kind[2] += labels[row] == said[anchor]
    # A random negative may be confused as well: with one of nine other classes, in 4 % of the rows each.
    total, false, _ = counts[True]
    assert false / total == pytest.approx(0.5 + 0.5 * 0.04, abs=0.03)
    total, false, taken_for = counts[False]
    assert false / total == pytest.approx(0.33 + 0.67 * 0.04, abs=0.04)
    assert taken_for / total == pytest.approx(0.67 * 0.5 + (0.33 + 0.67 * 0.5) / 9, abs=0.04)


def test_random_negatives_are_of_different_classes():
    found = tuples(ConfusionTupleSampler(LABELS, LABELS))  # nothing is confused
    assert all(len(set(LABELS[each[2:]])) == 6 for each in found)


def test_the_rows_of_a_pool_come_in_turn():
    found = tuples(ConfusionTupleSampler(LABELS, LABELS))
    uses = np.bincount(found[:, 1:].ravel(), minlength=len(LABELS))
    assert uses.min() >= 3  # of 7 on average


def test_epochs_differ_and_repeat_by_seed():
    def plan(seed, epoch):
        sampler = ConfusionTupleSampler(LABELS, confused(), seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)


def test_names_and_tensors():
    names = np.array([f"class {label}" for label in LABELS])
    said = confused()
    by_name = ConfusionTupleSampler(names, np.array([f"class {label}" for label in said]))
    plain = ConfusionTupleSampler(torch.from_numpy(LABELS), torch.from_numpy(said))
    assert list(by_name) == list(plain)


def test_the_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()
    list(ConfusionTupleSampler(LABELS, confused()))
    assert (np.random.get_state()[1] == before).all()


def test_in_a_data_loader():
    sampler = ConfusionTupleSampler(LABELS, confused(), tuples_per_batch=4)
    loader = torch.utils.data.DataLoader(torch.from_numpy(LABELS), batch_sampler=sampler)
    batches = list(loader)
    assert len(batches) == 30
    assert all((batch.view(-1, 8)[:, 0] == batch.view(-1, 8)[:, 1]).all() for batch in batches)


@pytest.mark.parametrize(
    ("labels", "said", "options", "word"),
    [
        (LABELS, LABELS[:-1], {}, "predictions"),
        (LABELS, LABELS.astype(str), {}, "predictions"),
        (LABELS, LABELS, {"negatives": 10}, "11 classes"),
        (LABELS, LABELS, {"negatives": 0}, "negatives"),
        (LABELS, LABELS, {"tuples_per_batch": 0}, "tuples_per_batch"),
        (LABELS, LABELS, {"seed": -1}, "seed"),
        (np.arange(9), np.arange(9), {}, "no class has two rows"),
        (LABELS.astype(float), LABELS, {}, "labels"),
    ],
)
def test_what_cannot_be_sampled_is_refused(labels, said, options, word):
    with pytest.raises(InputError, match=word):
        ConfusionTupleSampler(labels, said, **options)

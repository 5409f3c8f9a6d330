"""Batches of P x K: what holds for any labels, over epochs and processes, and inside sentence-transformers' trainer."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.miners import ClassBalancedBatchSampler

any_labels = st.lists(st.integers(-3, 8), min_size=1, max_size=60)


def plan(sampler, epochs: int = 1) -> list[list[int]]:
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        found += batches
    return found


def check_batch(batch, labels, p, k) -> None:
    assert len(batch) == p * k
    per_class = [batch[start : start + k] for start in range(0, p * k, k)]
    classes = [{labels[row] for row in rows} for rows in per_class]
    assert all(len(names) == 1 for names in classes)
    assert len(set.union(*classes)) == p
    sizes = Counter(labels)
    for rows in per_class:
        repeats = Counter(rows).values()
        size = sizes[labels[rows[0]]]
        assert max(repeats) == -(-k // size)  # repeated only when needed, and evenly
        assert len(repeats) == min(k, size)


@given(any_labels, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=150, deadline=None)
def test_every_batch_has_p_classes_of_k(labels, p, k, seed, epoch):
    p = min(p, len(set(labels)))
    sampler = ClassBalancedBatchSampler(labels, p, k, seed=seed)
    assert sampler.batch_size == p * k
    assert len(sampler) == -(-len(labels) // (p * k))
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for batch in batches:
        check_batch(batch, labels, p, k)
    again = ClassBalancedBatchSampler(np.array(labels), p, k, seed=seed)
    again.set_epoch(epoch)
    assert list(again) == batches
    assert list(sampler) == batches  # iterating moves nothing


@given(any_labels, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 30), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_processes_share_the_plan_of_one(labels, p, k, world, batches, epoch):
    p = min(p, len(set(labels)))
    shares = []
    for rank in range(world):
        sampler = ClassBalancedBatchSampler(labels, p, k, batches=batches, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
    length = max(1, batches // world)
    assert [len(share) for share in shares] == [length] * world
    one = ClassBalancedBatchSampler(labels, p, k, batches=length * world)
    one.set_epoch(epoch)
    assert list(itertools.chain(*zip(*shares, strict=True))) == list(one)


@given(any_labels, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_row_is_used_and_classes_have_equal_turns(labels, p, k):
    sizes = Counter(labels)
    p = min(p, len(sizes))
    rounds = max(-(-size // k) for size in sizes.values())
    in_a_round = -(-len(sizes) // p)
    sampler = ClassBalancedBatchSampler(labels, p, k, batches=in_a_round)
    batches = plan(sampler, rounds)
    assert {row for batch in batches for row in batch} == set(range(len(labels)))
    turns = Counter(labels[row] for batch in batches for row in batch[::k])
    assert min(turns.values()) >= rounds
    assert sum(turns.values()) == rounds * in_a_round * p


def test_epochs_go_on_through_one_endless_plan_and_seeds_differ():
    labels = [c for c in range(20) for _ in range(7)]
    short = ClassBalancedBatchSampler(labels, 4, 2, batches=5)
    long = ClassBalancedBatchSampler(labels, 4, 2, batches=15)
    assert plan(short, 6) == plan(long, 2)
    assert len({tuple(batch) for batch in plan(short, 20)}) == 100
    assert plan(ClassBalancedBatchSampler(labels, 4, 2, batches=5, seed=1), 6) != plan(long, 2)


def test_global_random_state_is_left_alone():
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    list(ClassBalancedBatchSampler([0, 0, 1, 1], 2, 2))
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_a_huge_class_is_covered():
    labels = [0] * 1000 + list(range(1, 10)) * 3
    sampler = ClassBalancedBatchSampler(labels, 5, 8)
    seen = {row for batch in plan(sampler, 10) for row in batch}
    assert seen == set(range(len(labels)))


@pytest.mark.parametrize("form", ["multi-hot", "tensor", "lists", "names"])
def test_several_labels_a_row(form):
    generator = np.random.default_rng(3)
    hot = (generator.random((60, 9)) < 0.3).astype(int)
    hot[5] = 0
    given_labels = {
        "multi-hot": hot,
        "tensor": torch.from_numpy(hot),
        "lists": [np.flatnonzero(row).tolist() for row in hot],
        "names": [{f"class {c}" for c in np.flatnonzero(row)} for row in hot],
    }[form]
    sampler = ClassBalancedBatchSampler(given_labels, 4, 3, seed=2)
    assert plan(sampler, 3) == plan(ClassBalancedBatchSampler(hot, 4, 3, seed=2), 3)
    assert len(sampler) == 5
    seen = set()
    for batch in plan(sampler, 40):
        assert len(set(batch)) == 12  # every class has rows enough to share none
        groups = [batch[start : start + 3] for start in range(0, 12, 3)]
        candidates = [set(np.flatnonzero(hot[rows].all(0))) for rows in groups]
        assert any(len(set(choice)) == 4 for choice in itertools.product(*candidates))
        seen |= set(batch)
    assert seen == set(np.flatnonzero(hot.any(1)).tolist())


def test_a_row_is_shared_by_two_classes_only_when_it_must():
    labels = [[0, 1], [0], [1], [2], [2], [3, 4]]
    for batch in plan(ClassBalancedBatchSampler(labels, 3, 2), 30):
        counts = Counter(batch)
        assert counts[0] + counts[1] + counts[2] <= 4
        if 5 not in counts and 3 in counts:  # the classes 0, 1 and 2
            # Class 0 has rows 0 and 1, class 1 rows 0 and 2: together only three.
            assert counts[0] == 2


def test_rank_from_the_process_group(monkeypatch):
    labels = [0, 0, 1, 1, 2, 2]
    alone = ClassBalancedBatchSampler(labels, 2, 2, batches=6, rank=None, world_size=None)
    whole = list(alone)
    assert len(whole) == 6
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert list(alone) == whole[1::3]


def test_pickled_between_epochs_without_what_it_remembers():
    sampler = ClassBalancedBatchSampler(list(range(500)) * 4, 10, 4)
    fresh = len(pickle.dumps(sampler))
    sampler.set_epoch(3)
    batches = list(sampler)
    assert len(pickle.dumps(sampler)) == fresh
    assert list(pickle.loads(pickle.dumps(sampler))) == batches


def test_bad_input_is_named():
    make = ClassBalancedBatchSampler
    for call, message in (
        (lambda: make([0, 0, 1], 3, 2), "classes_per_batch=3 is more than the 2 classes of the data"),
        (lambda: make([], 1, 1), "labels has shape"),
        (lambda: make([[], []], 1, 1), "classes_per_batch=1 is more than the 0 classes"),
        (lambda: make([0.5, 1.0], 1, 1), "labels has shape .2,. and dtype float64"),
        (lambda: make([0, 1], 0, 1), "classes_per_batch=0 must be a whole number, 1 or more"),
        (lambda: make([0, 1], 1, 0), "samples_per_class=0 must be"),
        (lambda: make([0, 1], 1, 1, seed=-1), "seed=-1 must be"),
        (lambda: make([0, 1], 1, 1, batches=0), "batches=0 must be"),
        (lambda: make([0, 1], 1, 1, rank=2, world_size=2), r"rank=2 must lie in \[0, 2\)"),
        (lambda: make([0, 1], 1, 1).set_epoch(-1), "epoch=-1 must be"),
    ):
        with pytest.raises(InputError, match=message):
            call()


# sentence-transformers


def _dataset():
    from datasets import Dataset

    words = ["tremor", "cyanosis", "fever", "cough", "rash", "nausea"]
    rows = [(f"{word} {number}", c) for c, word in enumerate(words) for number in range(8)]
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def test_the_factory_reads_the_label_column():
    dataset = _dataset()
    factory = pickle.loads(pickle.dumps(ClassBalancedBatchSampler.factory(samples_per_class=4)))
    arguments = {"valid_label_columns": ["label", "score"], "generator": torch.Generator(), "drop_last": False}
    sampler = factory(dataset, batch_size=8, seed=3, **arguments)
    assert plan(sampler) == plan(ClassBalancedBatchSampler(dataset["label"], 2, 4, seed=3))
    few = factory(dataset.select(range(16)), batch_size=32, **arguments)  # evaluation data of two classes
    assert few.batch_size == 8
    with pytest.raises(InputError, match="the batch size 10 is no multiple of samples_per_class=4"):
        factory(dataset, batch_size=10, **arguments)
    with pytest.raises(InputError, match="has no column label or score to take classes from; it has text"):
        factory(dataset.remove_columns("label"), batch_size=8, **arguments)
    named = ClassBalancedBatchSampler.factory(2, label_column="topic", batches=3)
    sampler = named(dataset.rename_column("label", "topic"), batch_size=4, **arguments)
    assert len(sampler) == 3


def test_the_trainer_trains_and_saves_with_the_factory(tmp_path):
    from nearfar.data import demo_model
    from nearfar.losses import CircleLoss
    from nearfar.retrieval import fine_tune

    seen = []

    class Watching(CircleLoss):
        def forward(self, embeddings, labels=None, *rest):
            seen.append(labels.tolist())
            return super().forward(embeddings, labels, *rest)

    fine_tune(
        demo_model(),
        _dataset(),
        loss=Watching(),
        batch_sampler=ClassBalancedBatchSampler.factory(samples_per_class=4),
        batch_size=12,
        epochs=2,
        learning_rate=1e-3,
        output_dir=tmp_path / "run",
        show_progress=False,
    )
    assert len(seen) == 8
    assert all(sorted(Counter(labels).values()) == [4, 4, 4] for labels in seen)

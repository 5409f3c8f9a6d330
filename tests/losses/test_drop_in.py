"""The losses under pytorch-metric-learning's names: same signature, same numbers, and where they differ."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

import nearfar.losses
from nearfar.errors import InputError
from nearfar.losses import (
    ContrastiveLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    SupConLoss,
    TripletMarginLoss,
)
from tests.losses.inputs import CLASSES, DIM, LabelInputs, one_class, plain, references
from tests.losses.outcome import assert_same, outcome

pml = pytest.importorskip("pytorch_metric_learning.losses")
miners = pytest.importorskip("pytorch_metric_learning.miners")

OPTIONS = [
    ("TripletMarginLoss", {}),
    ("TripletMarginLoss", {"margin": 0.3, "swap": True}),
    ("TripletMarginLoss", {"smooth_loss": True}),
    ("SupConLoss", {}),
    ("SupConLoss", {"temperature": 0.5}),
    ("NTXentLoss", {}),
    ("NTXentLoss", {"temperature": 0.5}),
    ("ContrastiveLoss", {}),
    ("ContrastiveLoss", {"pos_margin": 0.5, "neg_margin": 1.4}),
]
each_loss = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else str(v))


def _both(name, options):
    return getattr(nearfar.losses, name)(**options), getattr(pml, name)(**options)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", [*dict(OPTIONS), "ProxyAnchorLoss", "CircleLoss"])
def test_arguments_have_their_order_and_defaults(name):
    def arguments(loss):
        found = list(inspect.signature(loss.__init__).parameters.values())[1:]
        return [(p.name, p.default) for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]

    theirs = arguments(getattr(pml, name))
    assert arguments(getattr(nearfar.losses, name))[: len(theirs)] == theirs


@each_loss
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_with_itself(name, options, seed):
    ours, theirs = _both(name, options)
    inputs = plain(_generator(seed))
    assert_same(outcome(ours, inputs), outcome(theirs, inputs), tolerance=1e-7)


# With swap, theirs takes distances between the wrong samples.
@pytest.mark.parametrize(("name", "options"), [row for row in OPTIONS if not row[1].get("swap")])
def test_a_reference_set(name, options):
    ours, theirs = _both(name, options)
    inputs = references(_generator(2))
    assert_same(outcome(ours, inputs), outcome(theirs, inputs), tolerance=1e-7)


@each_loss
def test_a_batch_of_one_class(name, options):
    ours, theirs = _both(name, options)
    inputs = one_class(_generator(3))
    assert_same(outcome(ours, inputs), outcome(theirs, inputs), tolerance=1e-7)


@each_loss
def test_mined_pairs(name, options):
    ours, theirs = _both(name, options)
    inputs = plain(_generator(4))
    mined = miners.PairMarginMiner(pos_margin=0.9, neg_margin=1.3)(inputs.embeddings, inputs.labels)
    assert len(mined) == 4
    inputs = replace(inputs, indices_tuple=tuple(mined))
    assert_same(outcome(ours, inputs), outcome(theirs, inputs), tolerance=1e-7)


@each_loss
def test_mined_triplets(name, options):
    ours, theirs = _both(name, options)
    inputs = plain(_generator(5))
    mined = tuple(miners.TripletMarginMiner(margin=0.3)(inputs.embeddings, inputs.labels))
    assert len(mined) == 3
    counted = mined
    if name in ("NTXentLoss", "ContrastiveLoss"):
        # Theirs counts a pair once per triplet it occurs in.
        a, p, n = mined
        (a1, p), (a2, n) = torch.stack([a, p]).unique(dim=1), torch.stack([a, n]).unique(dim=1)
        counted = (a1, p, a2, n)
    found = outcome(ours, replace(inputs, indices_tuple=mined))
    assert_same(found, outcome(theirs, replace(inputs, indices_tuple=counted)), tolerance=1e-7)


@pytest.mark.parametrize("name", ["NTXentLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_what_is_mined_twice_counts_once_here_and_twice_there(name):
    ours, theirs = _both(name, {})
    inputs = plain(_generator(6))
    mined = tuple(miners.TripletMarginMiner(type_of_triplets="hard")(inputs.embeddings, inputs.labels))
    some = torch.tensor([0, 0, 0, *range(len(mined[0]))])
    once, thrice = (replace(inputs, indices_tuple=tuple(part[i] for part in mined)) for i in (some[3:], some))
    assert_same(outcome(ours, thrice), outcome(ours, once))
    assert abs(outcome(theirs, thrice).value - outcome(theirs, once).value) > 1e-4


@pytest.mark.parametrize("labels", [(0, 0, 1, 1), (0, 1, 2, 3)])
def test_supcon_with_anchors_that_lack_mined_negatives(labels):
    # An anchor with two positives and no negative counts, with one positive and no negative it does not.
    inputs = plain(_generator(7))
    a1, p = torch.tensor([0, 0, 2, 5, 5]), torch.tensor([2, 5, 0, 0, 2])
    a2, n = torch.tensor([5, 5]), torch.tensor([1, 3])
    inputs = replace(inputs, labels=None, indices_tuple=(a1, p, a2, n))
    assert_same(outcome(SupConLoss(), inputs), outcome(pml.SupConLoss(), inputs), tolerance=1e-7)


def test_one_pair_of_each_kind_is_not_nothing():
    # Theirs takes index tuples of length one for empty.
    inputs = plain(_generator(8))
    one = tuple(torch.tensor([i]) for i in (0, 2, 0, 1))
    x = torch.nn.functional.normalize(inputs.embeddings)
    expected = torch.nn.functional.softplus((x[0] @ x[1] - x[0] @ x[2]) / 0.07)
    torch.testing.assert_close(outcome(NTXentLoss(), replace(inputs, indices_tuple=one)).value, expected)


@pytest.mark.parametrize("kind", ["hard", "semihard"])
@pytest.mark.parametrize("swap", [False, True])
def test_mining_inside_the_triplet_loss_equals_their_miners(kind, swap):
    inputs = plain(_generator(9))
    miner = {
        "hard": miners.BatchHardMiner(),
        "semihard": miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard"),
    }[kind]
    mined = tuple(miner(inputs.embeddings, inputs.labels))
    assert len(mined[0]) > 3
    theirs = outcome(pml.TripletMarginLoss(margin=0.3, swap=swap), replace(inputs, indices_tuple=mined))
    found = outcome(TripletMarginLoss(margin=0.3, swap=swap, mining=kind), inputs)
    assert_same(found, theirs, tolerance=1e-7)


# Random triplets


@pytest.mark.parametrize("with_references", [False, True])
def test_random_triplets_are_triplets(with_references, monkeypatch):
    inputs = references(_generator(10)) if with_references else plain(_generator(10))
    loss = TripletMarginLoss(triplets_per_anchor=7, seed=3)
    seen = []
    monkeypatch.setattr(loss, "_of_triplets", lambda _, triplets: seen.append(triplets))
    inputs.call(loss)
    ((a, p, n),) = seen
    ref_labels = inputs.ref_labels if with_references else inputs.labels
    same = inputs.labels[:, None] == ref_labels
    able = same.sum(1) > (0 if with_references else 1)
    assert a.tolist() == able.nonzero().squeeze(1).repeat_interleave(7).tolist()
    assert same[a, p].all()
    assert not same[a, n].any()
    if not with_references:
        assert (a != p).all()


def test_random_triplets_reach_every_pair_evenly(monkeypatch):
    labels = torch.tensor([4, 2, 4, 2, 4])
    loss = TripletMarginLoss(triplets_per_anchor=3000)
    seen = []
    monkeypatch.setattr(loss, "_of_triplets", lambda _, triplets: seen.append(triplets))
    loss(torch.eye(5), labels)
    ((a, p, n),) = seen
    for anchor, positives, negatives in [(0, (2, 4), (1, 3)), (2, (0, 4), (1, 3)), (3, (1,), (0, 2, 4))]:
        for part, expected in ((p, positives), (n, negatives)):
            counts = torch.bincount(part[a == anchor], minlength=5)
            assert set(counts.nonzero().squeeze(1).tolist()) == set(expected)
            assert counts[list(expected)].min() > 0.9 * 3000 / len(expected)


def test_random_triplets_repeat_with_the_seed_and_resume_with_the_state():
    inputs = plain(_generator(11))

    def values(loss, count):
        return [inputs.call(loss).item() for _ in range(count)]

    first = TripletMarginLoss(triplets_per_anchor=2, seed=5)
    unbroken = values(first, 4)
    assert len(set(unbroken)) == 4
    assert values(TripletMarginLoss(triplets_per_anchor=2, seed=5), 4) == unbroken
    assert values(TripletMarginLoss(triplets_per_anchor=2, seed=6), 4) != unbroken
    half, resumed = (TripletMarginLoss(triplets_per_anchor=2, seed=5) for _ in range(2))
    values(half, 2)
    resumed.load_state_dict(half.state_dict())
    assert values(resumed, 2) == unbroken[2:]


@pytest.mark.parametrize("options", [{"triplets_per_anchor": 0}, {"triplets_per_anchor": "some"}, {"mining": "easy"}])
def test_unusable_triplet_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        TripletMarginLoss(**options)


def test_random_triplets_need_one_label_per_sample():
    with pytest.raises(InputError, match="triplets_per_anchor"):
        TripletMarginLoss(triplets_per_anchor=2)(torch.eye(3), torch.eye(3).long())


def test_all_triplets_of_a_large_class_stay_below_their_listing():
    # 2 classes of 300: 54 million triplets, which a list of three indices holds in 1.3 GB.
    x = torch.randn(600, 8, generator=_generator(12), dtype=torch.float64)
    inputs = LabelInputs(x, torch.arange(600) % 2)
    found = outcome(TripletMarginLoss(margin=0.2), inputs).value
    unit = torch.nn.functional.normalize(x)
    d = torch.cdist(unit, unit)
    total, count = 0.0, 0
    for i in range(600):
        mates = [j for j in range(600) if (j - i) % 2 == 0 and j != i]
        violation = (d[i, mates][:, None] - d[i, 1 - i % 2 :: 2] + 0.2).relu()
        total, count = total + violation.sum().item(), count + int((violation > 0).sum())
    assert found.item() == pytest.approx(total / count, rel=1e-9)


# Proxy-Anchor


def _proxy_anchors(**options):
    theirs = pml.ProxyAnchorLoss(CLASSES, DIM, **options).double()
    ours = ProxyAnchorLoss(CLASSES, DIM, **options).double()
    ours.load_pml_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "alpha": 8}])
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_proxy_anchor(options, path):
    ours, theirs = _proxy_anchors(**options)
    ours.path = path
    inputs = plain(_generator(13))
    assert_same(outcome(ours, inputs), outcome(theirs, inputs), tolerance=1e-8)


def test_proxies_start_with_their_spread():
    theirs, ours = pml.ProxyAnchorLoss(400, 64).proxies, ProxyAnchorLoss(400, 64).proxies
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    assert ours.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)


def test_proxy_anchor_logits_are_cosines():
    ours, theirs = _proxy_anchors()
    x = plain(_generator(14)).embeddings
    torch.testing.assert_close(ours.get_logits(x), theirs.get_logits(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("state", [{}, {"proxies": torch.zeros(DIM, CLASSES)}])
def test_proxies_of_another_shape_are_refused(state):
    with pytest.raises(InputError, match="proxies"):
        ProxyAnchorLoss(CLASSES, DIM).load_pml_state_dict(state)


def test_shortened_embeddings_meet_shortened_proxies():
    ours, _ = _proxy_anchors()
    inputs = plain(_generator(15), dim=4)
    short = ProxyAnchorLoss(CLASSES, 4).double()
    short.load_pml_state_dict({"proxies": ours.proxies[:, :4]})
    torch.testing.assert_close(inputs.call(ours), inputs.call(short), rtol=1e-12, atol=1e-12)


def test_copies_are_at_distance_zero():
    x = torch.randn(6, 40, generator=_generator(16))
    x[3:] = x[:3]
    value = ContrastiveLoss(neg_margin=0)(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    assert value == 0

"""The cross-batch memory beside pytorch-metric-learning's, beside explicit pairs, resumed, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from pytorch_metric_learning import losses as pml
from safetensors.torch import load, save

from nearfar.errors import InputError
from nearfar.losses import (
    ArcFaceLoss,
    CircleLoss,
    ContrastiveLoss,
    ForSentenceTransformer,
    ICNNLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    NTXentLoss,
    ProtoTripletLoss,
    SupConLoss,
    ThresholdConsistentMarginLoss,
    TripletMarginLoss,
    WeightedSum,
    as_pml,
)
from nearfar.miners import BatchHardMiner, EmbeddingMemory, MultiSimilarityMiner, TripletMarginMiner

SHARED = {
    "circle": (CircleLoss(gamma=8), pml.CircleLoss(gamma=8)),
    "contrastive": (ContrastiveLoss(), pml.ContrastiveLoss()),
    "multi-similarity": (MultiSimilarityLoss(), pml.MultiSimilarityLoss()),
    "nt-xent": (NTXentLoss(), pml.NTXentLoss()),
    "supcon": (SupConLoss(), pml.SupConLoss()),
    "triplet": (TripletMarginLoss(0.3), pml.TripletMarginLoss(0.3)),
}
OURS = {**{name: ours for name, (ours, _) in SHARED.items()}, "tcm": ThresholdConsistentMarginLoss()}
SIZE, DIM = 23, 5


def stream(steps: int, batch: int = 8, seed: int = 0):
    """Batches of unequal size and few classes, so that the memory is displaced in the middle of a batch."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        count = batch - step % 3
        x = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
        yield x.requires_grad_(), torch.randint(5, (count,), generator=generator)


def explicit(x, labels, old, old_labels):
    """All references, and the pairs with them by hand: the batch comes last, and no sample meets itself."""
    references, ref_labels = torch.cat([old.reshape(-1, DIM), x]), torch.cat([old_labels, labels])
    same = labels[:, None] == ref_labels
    itself = torch.arange(len(x))[:, None] + len(old) == torch.arange(len(references))
    return ((same & ~itself).nonzero().T, (~same).nonzero().T, references, ref_labels)


def remembered(x, labels, size=SIZE):
    return x[max(0, len(x) - size) :], labels[max(0, len(labels) - size) :]


@pytest.mark.parametrize("name", SHARED)
def test_values_of_pytorch_metric_learning(name):
    ours, theirs = SHARED[name]
    memory = EmbeddingMemory(ours, SIZE)
    other = pml.CrossBatchMemory(theirs, DIM, memory_size=SIZE)
    for x, labels in stream(9):
        torch.testing.assert_close(memory(x, labels), other(x, labels), rtol=1e-6, atol=1e-9)
    held = sorted(map(tuple, other.embedding_memory.tolist()))
    assert sorted(map(tuple, memory.embeddings.tolist())) == held


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient_of_explicit_pairs(name):
    loss = OURS[name]
    memory = EmbeddingMemory(loss, SIZE)
    old, old_labels = torch.empty(0, DIM, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for x, labels in stream(7):
        kept = remembered(old, old_labels, SIZE - len(x))
        positives, negatives, references, ref_labels = explicit(x, labels, *kept)
        expected = loss(x, labels, (*positives, *negatives), references, ref_labels)
        found = memory(x, labels)
        torch.testing.assert_close(found, expected)
        (wanted,), (gradient,) = torch.autograd.grad(expected, x), torch.autograd.grad(found, x)
        torch.testing.assert_close(gradient, wanted)
        old, old_labels = remembered(torch.cat([old, x.detach()]), torch.cat([old_labels, labels]))
        assert torch.equal(memory.embeddings, old)  # oldest first
        assert torch.equal(memory.labels, old_labels)


@pytest.mark.parametrize("name", [*OURS, "icnn", "proto-triplet"])
def test_the_first_step_is_the_loss_of_the_batch(name):
    loss = {**OURS, "icnn": ICNNLoss(), "proto-triplet": ProtoTripletLoss()}[name]
    (x, labels), *_ = stream(1)
    expected = loss(x, labels)
    found = EmbeddingMemory(loss, SIZE)(x, labels)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(value, x)[0] for value in (found, expected)))


@pytest.mark.parametrize("loss", [ICNNLoss(), ProtoTripletLoss()], ids=["icnn", "proto-triplet"])
def test_losses_of_whole_classes_take_the_memory_as_support(loss):
    memory = EmbeddingMemory(loss, SIZE)
    for step, (x, labels) in enumerate(stream(5)):
        older = min(len(memory.embeddings), SIZE - len(x))
        support = memory.embeddings[len(memory.embeddings) - older :], memory.labels[len(memory.labels) - older :]
        expected = loss(x, labels, ref_emb=support[0], ref_labels=support[1]) if step else loss(x, labels)
        torch.testing.assert_close(memory(x, labels), expected)


@pytest.mark.parametrize("theirs", [pml.ContrastiveLoss(), as_pml(ContrastiveLoss())], ids=["pml", "adapter"])
def test_losses_of_another_library_get_explicit_pairs(theirs):
    memory, other = EmbeddingMemory(ContrastiveLoss(), SIZE), EmbeddingMemory(theirs, SIZE)
    for x, labels in stream(6):
        values = memory(x, labels), other(x, labels)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in values))


def test_several_labels_a_sample():
    loss = MultiSimilarityLoss()
    one, several = EmbeddingMemory(loss, SIZE), EmbeddingMemory(loss, SIZE)
    for x, labels in stream(6):
        hot = torch.nn.functional.one_hot(labels, 5)
        torch.testing.assert_close(several(x, hot), one(x, labels))
    assert several.labels.shape == (SIZE, 5)


def test_a_sum_of_losses():
    parts = CircleLoss(), ThresholdConsistentMarginLoss()
    alone = [EmbeddingMemory(part, SIZE) for part in parts]
    together = EmbeddingMemory(WeightedSum([(parts[0], 1), (parts[1], 0.5)]), SIZE)
    for x, labels in stream(5):
        values = [memory(x, labels) for memory in alone]
        torch.testing.assert_close(together(x, labels), values[0] + 0.5 * values[1])


# Mined pairs


@pytest.mark.parametrize("miner", [MultiSimilarityMiner(), BatchHardMiner(), TripletMarginMiner(0.1)], ids=repr)
def test_a_miner_picks_among_all_references(miner):
    """As if the batch's own pairs with itself did not exist: no miner ever sees them."""
    loss = ContrastiveLoss()
    memory = EmbeddingMemory(loss, SIZE, miner=miner)
    for x, labels in stream(5):
        older = min(len(memory.embeddings), SIZE - len(x))
        old = memory.embeddings[len(memory.embeddings) - older :], memory.labels[len(memory.labels) - older :]
        if older:
            *_, references, ref_labels = explicit(x, labels, *old)
            indices = [[] for _ in miner(x, labels)]
            for row in range(len(x)):
                others = torch.arange(len(references)) != row + older
                found = miner(x[row : row + 1], labels[row : row + 1], references[others], ref_labels[others])
                places = torch.arange(len(references))[others]
                for number, part in enumerate(found):
                    is_anchor = number == 0 or (number == 2 and len(found) == 4)
                    indices[number].append(part + row if is_anchor else places[part])
            expected = loss(x, labels, [torch.cat(part) for part in indices], references, ref_labels)
        else:
            expected = loss(x, labels, miner(x, labels))
        torch.testing.assert_close(memory(x, labels), expected)


class OtherMiner(torch.nn.Module):
    """A miner of another library: it knows nothing of the sample's own column."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments):
        return self.inner(*arguments)


def test_a_miner_of_another_library():
    def make(miner):
        return EmbeddingMemory(TripletMarginLoss(0.3), SIZE, miner=miner)

    memory, other = make(TripletMarginMiner(0.1)), make(OtherMiner(TripletMarginMiner(0.1)))
    for x, labels in stream(6):
        torch.testing.assert_close(other(x, labels), memory(x, labels))


@pytest.mark.parametrize("length", [3, 4])
def test_mined_pairs_of_the_batch_meet_all_of_the_memory(length):
    loss = ContrastiveLoss()
    memory = EmbeddingMemory(loss, SIZE)
    for x, labels in stream(5):
        mined = BatchHardMiner()(x, labels) if length == 3 else MultiSimilarityMiner()(x, labels)
        older = min(len(memory.embeddings), SIZE - len(x))
        old = memory.embeddings[len(memory.embeddings) - older :], memory.labels[len(memory.labels) - older :]
        positives, negatives, references, ref_labels = explicit(x, labels, *old)
        a1, p, a2, n = mined if length == 4 else (mined[0], mined[1], mined[0], mined[2])
        positives = torch.cat([positives[:, positives[1] < older], torch.stack([a1, p + older])], 1)
        negatives = torch.cat([negatives[:, negatives[1] < older], torch.stack([a2, n + older])], 1)
        expected = loss(x, labels, (*positives, *negatives), references, ref_labels)
        torch.testing.assert_close(memory(x, labels, mined), expected)


# State


def test_fault_12_a_resumed_run_goes_on_exactly():
    batches = list(stream(9))
    straight = EmbeddingMemory(CircleLoss(), SIZE, warm_up=2)
    values = [straight(x, labels) for x, labels in batches]
    for stop in (0, 1, 2, 5):
        first = EmbeddingMemory(CircleLoss(), SIZE, warm_up=2)
        for x, labels in batches[:stop]:
            first(x, labels)
        resumed = EmbeddingMemory(CircleLoss(), SIZE, warm_up=2)
        resumed.load_state_dict(load(save(first.state_dict())))
        for (x, labels), value in zip(batches[stop:], values[stop:], strict=True):
            assert torch.equal(resumed(x, labels), value)
        assert torch.equal(resumed.embeddings, straight.embeddings)
        assert int(resumed.steps) == 9


@pytest.mark.parametrize("again", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_copies_are_equal_and_independent(again):
    batches = list(stream(6))
    memory = EmbeddingMemory(SupConLoss(), SIZE, miner=MultiSimilarityMiner())
    for x, labels in batches[:4]:
        memory(x, labels)
    copied = again(memory)
    values = [copied(x, labels) for x, labels in batches[4:]]
    assert len(memory.embeddings) == SIZE
    assert int(memory.steps) == 4
    assert all(torch.equal(memory(x, labels), value) for (x, labels), value in zip(batches[4:], values, strict=True))


def test_warm_up_fills_but_does_not_compare():
    loss, memory = CircleLoss(), EmbeddingMemory(CircleLoss(), SIZE, warm_up=3)
    for step, (x, labels) in enumerate(stream(5)):
        alone = torch.equal(memory(x, labels), loss(x, labels))
        assert alone == (step < 3)
    assert len(memory.embeddings) == SIZE


def test_evaluation_reads_only_and_reset_forgets():
    batches = list(stream(4))
    memory = EmbeddingMemory(CircleLoss(), SIZE)
    for x, labels in batches[:3]:
        memory(x, labels)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    x, labels = batches[3]
    value = memory.eval()(x, labels)
    assert all(torch.equal(memory.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(memory.train()(x, labels), value)
    memory.reset()
    assert torch.equal(memory(x, labels), CircleLoss()(x, labels))
    memory.reset()
    hot = torch.nn.functional.one_hot(labels)
    memory(x[:, :3], hot)
    assert memory.embeddings.shape == (len(x), 3)


def test_what_is_remembered_is_constant_and_finite():
    (x, labels), (y, more) = stream(2)
    memory = EmbeddingMemory(CircleLoss(), SIZE)
    with torch.no_grad():
        x[1] = torch.inf
    memory(x, labels)
    assert len(memory.embeddings) == len(x) - 1
    memory(y, more).backward()
    assert x.grad is None
    assert not memory.embeddings.requires_grad
    all_broken = EmbeddingMemory(CircleLoss(), SIZE)
    all_broken(torch.full((3, DIM), torch.nan), torch.arange(3))
    assert len(all_broken.embeddings) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    low, high = EmbeddingMemory(CircleLoss(), SIZE), EmbeddingMemory(CircleLoss(), SIZE)
    for x, labels in stream(4):
        leaf = x.detach().to(dtype).requires_grad_()
        value = low(leaf, labels)
        value.backward()
        assert leaf.grad.dtype == dtype
        assert torch.equal(value, high(leaf.detach().float(), labels))
    assert low.embeddings.dtype == torch.float32


def test_through_sentence_transformers():
    host = ForSentenceTransformer(torch.nn.Identity(), EmbeddingMemory(CircleLoss(), SIZE))
    memory = EmbeddingMemory(CircleLoss(), SIZE)
    for x, labels in stream(4):
        assert torch.equal(host.compute_loss_from_embeddings([x], labels), memory(x, labels))
    assert "loss.embeddings" in host.state_dict()


def test_bad_input_is_named():
    sizes = {"num_classes": 3, "embedding_size": 2}
    for make, message in (
        (lambda: EmbeddingMemory(InfoNCELoss(), 8), "InfoNCELoss compares queries with documents"),
        (lambda: EmbeddingMemory(ArcFaceLoss(**sizes), 8), "ArcFaceLoss compares with class weights"),
        (lambda: EmbeddingMemory(WeightedSum({ArcFaceLoss(**sizes): 1}), 8), "ArcFaceLoss compares with class weights"),
        (lambda: EmbeddingMemory(CircleLoss(reduction="none"), 8), "make CircleLoss with reduction='mean'"),
        (lambda: EmbeddingMemory(TripletMarginLoss(triplets_per_anchor=3), 8), "random triplets do not reach"),
        (lambda: EmbeddingMemory(CircleLoss(), 0), "size=0 must be at least 1"),
        (lambda: EmbeddingMemory(CircleLoss(), 8, warm_up=-1), "warm_up=-1 0 or more"),
        (
            lambda: EmbeddingMemory(WeightedSum([(CircleLoss(), 1), (CircleLoss(gather_across_devices=True), 1)]), 8),
            "differ in gather_across_devices",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make()
    memory = EmbeddingMemory(CircleLoss(), 8)
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    memory(x, labels)
    with pytest.raises(InputError, match="the batch has 12 samples and the memory size=8"):
        memory(x.repeat(3, 1), labels.repeat(3))
    with pytest.raises(InputError, match=r"the memory holds embeddings of shape \(n, 3\)"):
        memory(x[:, :2], labels)
    with pytest.raises(InputError, match=r"labels of shape \('n',\)"):
        memory(x, torch.nn.functional.one_hot(labels))
    with pytest.raises(InputError, match="use one of them"):
        EmbeddingMemory(CircleLoss(), 8, miner=BatchHardMiner())(x, labels, BatchHardMiner()(x, labels))
    with pytest.raises(InputError, match="labels has shape"):
        memory(x, labels[:2])


def test_labels_made_up_for_one_batch_are_refused():
    from nearfar.losses import ForSentenceTransformer

    memory = EmbeddingMemory(CircleLoss(), size=8)
    host = ForSentenceTransformer(torch.nn.Identity(), memory)
    columns = [torch.eye(2), torch.eye(2)]
    with pytest.raises(InputError, match="compares a batch with earlier ones"):
        host.compute_loss_from_embeddings(columns)
    assert host.compute_loss_from_embeddings(columns, torch.tensor([3, 4])).isfinite()

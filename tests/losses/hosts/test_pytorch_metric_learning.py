"""Every label loss inside pytorch-metric-learning's wrappers equals direct calls, in value and gradient."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.multiprocessing
from pytorch_metric_learning.losses import BaseMetricLossFunction, CrossBatchMemory, MultipleLosses, SelfSupervisedLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, DecoupledSoftmaxLoss, ThresholdConsistentMarginLoss, WeightedSum, as_pml
from tests.losses.cases import each, of_kind
from tests.losses.inputs import DIM, points

LABEL_CASES = of_kind("labels")
WITH_REFERENCES = [case for case in LABEL_CASES if case.capabilities.reference_set]
WITHOUT_REFERENCES = [case for case in LABEL_CASES if not case.capabilities.reference_set]
WITH_MEMORY = [case for case in WITH_REFERENCES if case.capabilities.mined_pairs]
WITHOUT_MEMORY = [case for case in WITH_REFERENCES if not case.capabilities.mined_pairs]


def batch(seed: int, rows: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return points(rows, g), torch.randint(4, (rows,), generator=g)


def value_and_gradient(call, x):
    x = x.clone().requires_grad_()
    value = call(x)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


class Memory:
    """What CrossBatchMemory does, written out: a ring of past embeddings, and all pairs but a sample's with itself."""

    def __init__(self, size: int, miner) -> None:
        self.size, self.miner = size, miner
        self.embeddings, self.labels, self.next = torch.zeros(size, DIM).double(), torch.full((size,), -1), 0

    def call(self, loss, x, labels):
        slots = []
        for row in range(len(x)):
            self.embeddings[self.next], self.labels[self.next] = x[row].detach(), labels[row]
            slots.append(self.next)
            self.next = (self.next + 1) % self.size
        filled = self.labels >= 0
        references, reference_labels = self.embeddings[filled].clone(), self.labels[filled].clone()
        if self.miner is None:
            rows, columns = range(len(x)), range(len(references))
            same = [(i, j) for i in rows for j in columns if labels[i] == reference_labels[j] and slots[i] != j]
            other = [(i, j) for i in rows for j in columns if labels[i] != reference_labels[j]]
            indices = [torch.tensor(side) for pairs in (same, other) for side in zip(*pairs, strict=True)]
        else:
            indices = self.miner(x, labels, references, reference_labels)
            own = torch.tensor(slots)
            keep = own[indices[0]] != indices[1]
            positives = [part[keep] for part in indices[:2]]
            indices = [*positives, indices[2][keep]] if len(indices) == 3 else [*positives, *indices[2:]]
        return loss(x, labels, indices, references, reference_labels)


@pytest.mark.parametrize("miner", [None, MultiSimilarityMiner, TripletMarginMiner])
@each(WITH_MEMORY)
def test_cross_batch_memory(case, miner):
    miner = None if miner is None else miner()
    wrapped, direct = as_pml(case.build()), case.build()
    memory = CrossBatchMemory(wrapped, DIM, memory_size=23, miner=miner).double()
    expected = Memory(23, miner)
    for step in range(6):  # the ring is full after the third
        x, labels = batch(step)
        value, gradient = value_and_gradient(lambda x, labels=labels: memory(x, labels), x)
        expected_value, expected_gradient = value_and_gradient(
            lambda x, labels=labels: expected.call(direct, x, labels), x
        )
        torch.testing.assert_close(value, expected_value)
        torch.testing.assert_close(gradient, expected_gradient)
        assert value == 0 or gradient.abs().max() > 0


@each(WITHOUT_MEMORY)
def test_a_loss_without_mined_pairs_says_so_inside_the_memory(case):
    memory = CrossBatchMemory(as_pml(case.build()), DIM, memory_size=23).double()
    with pytest.raises(InputError, match="cannot honour indices_tuple"):
        memory(*batch(0))


@each(WITHOUT_REFERENCES)
def test_losses_without_references_are_refused_by_name(case):
    name = type(case.build()).__name__
    for wrapper in (lambda loss: CrossBatchMemory(loss, DIM), SelfSupervisedLoss):
        with pytest.raises(Exception, match=f"not supported for {name}"):
            wrapper(as_pml(case.build()))


@pytest.mark.parametrize("symmetric", [True, False])
@each(WITH_REFERENCES)
def test_self_supervised_loss(case, symmetric):
    wrapped, direct = SelfSupervisedLoss(as_pml(case.build()), symmetric=symmetric), case.build()
    x, views = batch(0)[0], batch(1)[0]
    rows = torch.arange(len(x))

    def directly(x):
        if symmetric:
            return direct(torch.cat([x, views]), torch.cat([rows, rows]))
        return direct(x, rows, None, views, rows.clone())

    value, gradient = value_and_gradient(lambda x: wrapped(x, views), x)
    expected_value, expected_gradient = value_and_gradient(directly, x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("adapt", [as_pml, lambda loss: loss])
@each(LABEL_CASES)
def test_multiple_losses(case, adapt):
    margin = ThresholdConsistentMarginLoss()
    both = MultipleLosses([adapt(case.build()), adapt(margin)], weights=[1, 0.5])
    direct = case.build()
    x, labels = batch(0)
    value, gradient = value_and_gradient(lambda x: both(x, labels), x)
    expected_value, expected_gradient = value_and_gradient(lambda x: direct(x, labels) + 0.5 * margin(x, labels), x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient)


def one_of_two_processes(rank: int, folder: str) -> None:
    """Compare the wrapper with a direct call on the gathered batch, own part first, times the number of processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, labels = batch(rank)
    others, other_labels = batch(1 - rank)
    every_label = torch.cat([labels, other_labels])
    for case in LABEL_CASES:
        wrapped, direct = DistributedLossWrapper(as_pml(case.build()), efficient=False), case.build()
        found = value_and_gradient(lambda x, loss=wrapped: loss(x, labels), x)
        expected = value_and_gradient(lambda x, loss=direct: 2 * loss(torch.cat([x, others]), every_label), x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, name=case.name: f"{name}: {text}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_loss_wrapper_in_two_processes(tmp_path):
    torch.multiprocessing.spawn(one_of_two_processes, args=(str(tmp_path),), nprocs=2)


@each(LABEL_CASES)
def test_adapter(case):
    loss = case.build()
    adapter = as_pml(loss)
    assert isinstance(adapter, BaseMetricLossFunction)
    assert adapter.loss is loss
    assert repr(adapter) == f"as_pml({loss!r})"
    assert {f"loss.{name}" for name in loss.state_dict()} == set(adapter.state_dict())
    x, labels = batch(0)
    adapter.eval()
    for again in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert again.loss is not loss
        assert not again.training
        torch.testing.assert_close(again(x, labels), adapter(x, labels))


def test_a_sum_of_losses():
    loss = WeightedSum({CircleLoss(): 1, ThresholdConsistentMarginLoss(): 0.5})
    memory = CrossBatchMemory(as_pml(loss), DIM, memory_size=23).double()
    expected = Memory(23, None)
    for step in range(3):
        torch.testing.assert_close(memory(*batch(step)), expected.call(loss, *batch(step)))


def test_only_label_losses():
    for loss in (DecoupledSoftmaxLoss(), torch.nn.Identity()):
        with pytest.raises(InputError, match="does not learn from labels"):
            as_pml(loss)

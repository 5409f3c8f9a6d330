"""The cross-batch memory in real processes: one memory everywhere, and the exact loss of the shared batch."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, ContrastiveLoss, ProtoTripletLoss, WeightedSum
from nearfar.losses.engine.distributed import shards
from nearfar.miners import ClassBalancedBatchSampler, EmbeddingMemory, MultiSimilarityMiner
from nearfar.miners import memory as memory_module
from tests.losses.distributed.split import cut
from tests.losses.distributed.worker import WORLDS, Records, average, encoder, relative, run
from tests.losses.inputs import DIM, points

pytestmark = pytest.mark.slow

SIZE, STEPS, BATCH = 31, 6, 12

LOSSES = {
    "row-local": lambda gather: CircleLoss(gamma=4, gather_across_devices=gather),
    "statistics": lambda gather: ContrastiveLoss(gather_across_devices=gather),
    "whole": lambda gather: ProtoTripletLoss(gather_across_devices=gather),
    "sum": lambda gather: WeightedSum([(CircleLoss(gamma=4, gather_across_devices=gather), 2)]),
    "mined": lambda gather: CircleLoss(gamma=4, gather_across_devices=gather),
}


def every_check(world: int) -> Records:
    records = []
    for name, make in LOSSES.items():
        for kind in ("uneven", "one_empty"):
            records.append({"loss": name, "kind": kind, **shared_batch(make, world, kind, name == "mined")})
    return [*records, {"loss": "local", **local_batches(world)}, {"loss": "plan", "error": plans(world)}]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(points(BATCH, generator), torch.randint(4, (BATCH,), generator=generator)) for _ in range(STEPS)]


def shared_batch(make, world: int, kind: str, mined: bool) -> dict[str, float]:
    """Errors of values, averaged gradients and the memory, against one process with the whole batch."""
    miner = MultiSimilarityMiner() if mined else None
    one, shared = EmbeddingMemory(make(False), SIZE, miner=miner), EmbeddingMemory(make(True), SIZE, miner=miner)
    # A miner sees the anchors of its process: alone in the first step, so that the whole batch has other pairs.
    skip = int(mined)
    value_error = gradient_error = 0.0
    for step, (x, labels) in enumerate(batches()):
        own = cut(BATCH, world, kind)[dist.get_rank()]
        found = []
        for memory, rows in ((one, slice(0, BATCH)), (shared, own)):
            model = encoder()
            alone = (
                mock.patch.object(memory_module, "process_count", return_value=1) if memory is one else nullcontext()
            )
            with alone:
                value = memory(model(x[rows]), labels[rows])
            value.backward()
            found.append((value.detach(), [parameter.grad for parameter in model.parameters()]))
        (expected, wanted), (value, gradients) = found
        if step >= skip:
            value_error = max(value_error, relative(value, expected))
            mine = torch.cat([average(gradient).flatten() for gradient in gradients])
            gradient_error = max(gradient_error, relative(mine, torch.cat([g.flatten() for g in wanted])))
    memory_error = relative(shared.embeddings, one.embeddings) + float(not torch.equal(shared.labels, one.labels))
    return {"value": value_error, "gradient": gradient_error, "memory": memory_error + spread(shared.embeddings)}


def spread(tensor: torch.Tensor) -> float:
    """How far the processes differ."""
    rows = shards({"tensor": tensor[None]})["tensor"]
    everyone = rows.gather(tensor[None])
    return float((everyone - everyone[:1]).abs().max())


def local_batches(world: int) -> dict[str, float]:
    """A loss that does not gather meets the memory of all; so does one of another library."""
    from pytorch_metric_learning.losses import ContrastiveLoss as Theirs

    errors = {"value": 0.0, "gradient": 0.0, "memory": 0.0}
    for loss in (ContrastiveLoss(), Theirs()):
        memory, kept, kept_labels = EmbeddingMemory(loss, SIZE), torch.empty(0, DIM), torch.empty(0, dtype=torch.int64)
        for x, labels in batches():
            own = cut(BATCH, world, "uneven")[dist.get_rank()]
            count = own.stop - own.start
            old, old_labels = kept[-(SIZE - count) :], kept_labels[-(SIZE - count) :]
            same = labels[own, None] == torch.cat([old_labels, labels[own]])
            itself = torch.arange(count)[:, None] + len(old) == torch.arange(same.shape[1])
            pairs = (same & ~itself).nonzero(as_tuple=True) + (~same).nonzero(as_tuple=True)
            references = torch.cat([old, x[own]]), torch.cat([old_labels, labels[own]])
            expected = ContrastiveLoss()(x[own], labels[own], pairs, *references)
            errors["value"] = max(errors["value"], relative(memory(x[own], labels[own]), expected))
            kept, kept_labels = torch.cat([kept, x])[-SIZE:], torch.cat([kept_labels, labels])[-SIZE:]
            errors["memory"] = max(errors["memory"], relative(memory.embeddings, kept), spread(memory.embeddings))
        # In evaluation mode a process may be alone, without waiting for the others.
        if dist.get_rank() == 0:
            memory.eval()(x[:2], labels[:2])
        refused = 0
        try:
            memory.train()(torch.zeros(SIZE // world + 1, DIM).double(), torch.zeros(SIZE // world + 1).long())
        except InputError:
            refused = 1
        errors["memory"] += 1 - refused
    return errors


def plans(world: int) -> float:
    """Ranks asked from the group: disjoint shares that make the plan of one process."""
    labels = torch.arange(60) % 12
    own = list(ClassBalancedBatchSampler(labels, 3, 2, batches=6, rank=None, world_size=None))
    found: list[list[list[int]]] = [[] for _ in range(world)]
    dist.all_gather_object(found, own)
    together = [batch for group in zip(*found, strict=True) for batch in group]
    return float(together != list(ClassBalancedBatchSampler(labels, 3, 2, batches=6)))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return run(every_check, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", [*LOSSES, "local"])
def test_fault_3_the_memory_is_the_same_on_every_process(records, name, world):
    found = [record for record in records if record["loss"] == name and record["world"] == world]
    assert found
    for record in found:
        assert record["memory"] < 1e-12, record
        assert record["value"] < 1e-9, record
        assert record["gradient"] < 1e-6, record


@pytest.mark.parametrize("world", WORLDS)
def test_balanced_batches_of_several_processes(records, world):
    (record,) = [record for record in records if record["loss"] == "plan" and record["world"] == world]
    assert record["error"] == 0


def test_theirs_differs_between_processes(tmp_path):
    """Fault 3 of pytorch-metric-learning 2.9: each process puts its own part first."""
    (record,) = run(_theirs, tmp_path, worlds=(2,))
    assert record["memory"] > 0.1


def _theirs(world: int) -> Records:
    from pytorch_metric_learning.losses import ContrastiveLoss as Theirs
    from pytorch_metric_learning.losses import CrossBatchMemory
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    memory = CrossBatchMemory(Theirs(), DIM, memory_size=SIZE)
    x, labels = batches()[0]
    own = slice(6 * dist.get_rank(), 6 * dist.get_rank() + 6)
    DistributedLossWrapper(memory)(nn.Identity()(x[own].float()), labels[own])
    return [{"memory": spread(memory.embedding_memory)}]

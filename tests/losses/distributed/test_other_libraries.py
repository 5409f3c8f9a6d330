"""Two processes, beside sentence-transformers' and pytorch-metric-learning's own ways to share a batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from nearfar.losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletMarginLoss,
)
from tests.losses.distributed.split import split
from tests.losses.distributed.worker import Records, average, gradients, relative, run
from tests.losses.inputs import DIM, Inputs, pairs, plain

pytestmark = pytest.mark.slow

SHARED = {
    "CircleLoss": lambda gather: CircleLoss(gather_across_devices=gather),
    "ContrastiveLoss": lambda gather: ContrastiveLoss(gather_across_devices=gather),
    "MultiSimilarityLoss": lambda gather: MultiSimilarityLoss(base=0.5, gather_across_devices=gather),
    "NTXentLoss": lambda gather: NTXentLoss(gather_across_devices=gather),
    "SupConLoss": lambda gather: SupConLoss(gather_across_devices=gather),
    "TripletMarginLoss": lambda gather: TripletMarginLoss(gather_across_devices=gather),
}


def _even(inputs: Inputs) -> tuple[Inputs, Inputs]:
    """The whole batch and this process's half, as equal parts are all that the wrapper can do."""
    half = len(inputs.embeddings) // 2
    own = slice(half * dist.get_rank(), half * (dist.get_rank() + 1))
    return inputs, type(inputs)(inputs.embeddings[own], inputs.labels[own])


def both_libraries(world: int) -> Records:
    return metric_learning(world) + sentence_transformers(world)


def metric_learning(world: int) -> Records:
    """Errors of the averaged gradients, of nearfar and of both modes of the wrapper."""
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    class LabelsOnly(nn.Module):
        def __init__(self, loss: nn.Module) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, embeddings, labels, *_):
            return self.loss(embeddings, labels)

    whole, own = _even(plain(torch.Generator().manual_seed(1), DIM))
    records = []
    for name, make in SHARED.items():
        theirs = getattr(losses, name)()
        for who, whole_loss, shared_loss in (
            ("nearfar", make(False), make(True)),
            ("efficient", theirs, DistributedLossWrapper(theirs, efficient=True)),
            ("plain", theirs, DistributedLossWrapper(theirs)),
        ):
            _, wanted = gradients(LabelsOnly(whole_loss), whole)
            _, found = gradients(LabelsOnly(shared_loss), own)
            error = _joint_error(found, wanted)
            records.append({"loss": name, "who": who, "error": error})
    return records


def sentence_transformers(world: int) -> Records:
    """InfoNCE of one process, of nearfar's processes and of theirs."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class Theirs(nn.Module):
        def __init__(self, gather: bool, options: dict) -> None:
            super().__init__()
            self.loss = MultipleNegativesRankingLoss(nn.Identity(), gather_across_devices=gather, **options)

        def forward(self, queries, documents, *_, **__):
            return self.loss.compute_loss_from_embeddings([queries, documents], None)

    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    whole = pairs(torch.Generator().manual_seed(1), DIM)
    whole = type(whole)(whole.queries[:8], whole.documents[:8])
    own = slice(4 * dist.get_rank(), 4 * (dist.get_rank() + 1))
    part = type(whole)(whole.queries[own], whole.documents[own])
    records = []
    for symmetric, options in ((False, {}), (True, both)):
        _, wanted = gradients(Theirs(False, options), whole)
        shared = {"nearfar": InfoNCELoss(symmetric=symmetric, gather_across_devices=True), "st": Theirs(True, options)}
        for who, loss in shared.items():
            _, found = gradients(loss, part)
            records.append({"loss": f"symmetric={symmetric}", "who": who, "error": _joint_error(found, wanted)})
    return records


def _joint_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Of all gradients as one vector."""
    mine = torch.cat([average(found[name]).flatten() for name in sorted(wanted)])
    return relative(mine, torch.cat([wanted[name].flatten() for name in sorted(wanted)]))


def unequal_batches(world: int) -> Records:
    """The wrapper on batches of unequal size."""
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    _, parts = split(plain(torch.Generator().manual_seed(1), DIM), world, "uneven")
    own = parts[dist.get_rank()]
    DistributedLossWrapper(losses.CircleLoss())(own.embeddings, own.labels).backward()
    return []


def nearfars_unequal_batches(world: int) -> Records:
    whole, parts = split(plain(torch.Generator().manual_seed(1), DIM), world, "uneven")
    _, wanted = gradients(CircleLoss(), whole)
    _, found = gradients(CircleLoss(gather_across_devices=True), parts[dist.get_rank()])
    return [{"error": _joint_error(found, wanted)}]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return run(both_libraries, tmp_path_factory.mktemp("gloo"), (2,))


@pytest.mark.parametrize("name", SHARED)
def test_pml_fault_1_its_efficient_wrapper_misses_the_gradient_of_the_whole_batch(records, name):
    errors = {record["who"]: record["error"] for record in records if record["loss"] == name}
    print(name, {who: f"{error:.1e}" for who, error in errors.items()})
    assert errors["nearfar"] < 1e-6
    assert errors["plain"] < 1e-6  # so the convention of averaging is the same
    assert errors["efficient"] > 0.1


def test_pml_fault_2_batches_of_unequal_size(tmp_path):
    (tmp_path / "nearfar").mkdir()
    (record,) = run(nearfars_unequal_batches, tmp_path / "nearfar", (2,))
    assert record["error"] < 1e-6
    (tmp_path / "pml").mkdir()
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        run(unequal_batches, tmp_path / "pml", (2,), patience=10)  # one waits for what the other never sends


@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_equals_sentence_transformers(records, symmetric):
    errors = {r["who"]: r["error"] for r in records if r["loss"] == f"symmetric={symmetric}"}
    print(f"symmetric={symmetric}", {who: f"{error:.1e}" for who, error in errors.items()})
    assert errors["nearfar"] < 1e-6
    assert errors["st"] < 1e-6

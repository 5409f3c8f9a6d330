"""What the table of losses does not show: further options, second derivatives, refusals, and the collectives."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses import (
    AdaFaceLoss,
    ArcFaceLoss,
    BiXSELoss,
    CircleLoss,
    ElasticFaceLoss,
    ForSentenceTransformer,
    HardNegativeMixing,
    InfoNCELoss,
    Metrix,
    MultiSimilarityLoss,
    ThresholdConsistentMarginLoss,
    TripletMarginLoss,
    WeightedSum,
)
from nearfar.losses.engine import LogSumExp, Maximum, Statistic, Sum
from nearfar.losses.engine.distributed import shards
from nearfar.losses.engine.statistics import _over_processes
from tests.losses.cases import CASES
from tests.losses.distributed.split import cut, split
from tests.losses.distributed.worker import Records, average, encoder, gradients, relative
from tests.losses.inputs import (
    CLASSES,
    DIM,
    Inputs,
    Scenario,
    extra_documents,
    mined_pairs,
    mined_triplets,
    plain,
    points,
    references,
)

SIZES = {"num_classes": CLASSES, "embedding_size": DIM}


def every_check(world: int) -> Records:
    """Name and worst error of each check."""
    found = {check.__name__: check(world) for check in CHECKS}
    return [{"check": name, "error": error} for name, error in found.items()]


def _sets(scenario: Scenario, world: int) -> tuple[Inputs, Inputs]:
    whole, parts = split(scenario(torch.Generator().manual_seed(8), DIM), world, "uneven")
    return whole, parts[dist.get_rank()]


def _error(make, scenario: Scenario, world: int, steps: int = 1) -> float:
    """Of the averaged gradients after some steps with one loss; ``make(gather)`` builds it."""
    errors = []
    losses = [_seeded(make, gather) for gather in (False, True)]
    for _ in range(steps):
        whole, own = _sets(scenario, world)
        for loss in losses:
            loss.zero_grad()
        _, wanted = gradients(losses[0], whole)
        _, found = gradients(losses[1], own)
        errors += [relative(average(found[name]), gradient) for name, gradient in wanted.items()]
        buffers = zip(losses[0].buffers(), losses[1].buffers(), strict=True)
        errors += [relative(mine.double(), other.double()) for mine, other in buffers]
    return max(errors)


def _seeded(make, gather: bool):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return make(gather).double()


def random_triplets(world: int) -> float:
    return _error(lambda g: TripletMarginLoss(triplets_per_anchor=3, gather_across_devices=g), plain, world, 2)


def named_triplets(world: int) -> float:
    return _error(lambda g: TripletMarginLoss(margin=0.4, swap=True, gather_across_devices=g), mined_triplets, world)


def random_triplets_of_mined_pairs(world: int) -> float:
    return _error(lambda g: TripletMarginLoss(triplets_per_anchor=3, gather_across_devices=g), mined_pairs, world)


def all_pairs_of_mined_pairs(world: int) -> float:
    return _error(lambda g: CircleLoss(gamma=4, grouping="all_pairs", gather_across_devices=g), mined_pairs, world)


def ranked_margins(world: int) -> float:
    return _error(lambda g: ElasticFaceLoss(**SIZES, plus=True, gather_across_devices=g), plain, world, 3)


def class_sampling(world: int) -> float:
    return _error(lambda g: ArcFaceLoss(**SIZES, sample_rate=0.99, gather_across_devices=g), plain, world, 3)


def moving_statistics(world: int) -> float:
    return _error(lambda g: AdaFaceLoss(**SIZES, ema=0.5, gather_across_devices=g), plain, world, 3)


def automatic_bias(world: int) -> float:
    return _error(lambda g: BiXSELoss(gather_across_devices=g), extra_documents, world, 2)


def sums_of_losses(world: int) -> float:
    def make(gather: bool) -> WeightedSum:
        parts = (MultiSimilarityLoss, ThresholdConsistentMarginLoss)
        return WeightedSum([(part(gather_across_devices=gather), 0.5) for part in parts])

    return _error(make, plain, world)


class _Mixed(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.mixing = loss, Metrix(examples=3, seed=2)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.loss(*inputs, mixing=self.mixing)


def mixed_examples(world: int) -> float:
    """Every loss that mixes; four calls have both kinds of mixtures."""
    cases = [case for case in CASES if case.capabilities.mixing]
    return max(
        _error(lambda g, case=case: _Mixed(case.build(gather_across_devices=g)), scenario, world, 4)
        for case in cases
        for scenario in ([plain, references, mined_pairs] if case.capabilities.mined_pairs else [plain])
    )


class _Synthesising(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.synthesis = loss, HardNegativeMixing(hardest=4, mixtures=3, query_mixtures=2, seed=2)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.loss(*inputs, synthesis=self.synthesis)


def synthetic_negatives(world: int) -> float:
    """Every loss that takes them."""
    cases = [case for case in CASES if case.capabilities.synthesis]
    return max(
        _error(lambda g, case=case: _Synthesising(case.build(gather_across_devices=g)), scenario, world, 2)
        for case in cases
        for scenario in (plain, references, mined_pairs)
    )


def half_precision(world: int) -> float:
    """bfloat16 embeddings are gathered and summed in float32."""
    whole, own = _sets(plain, world)
    results = []
    for inputs, gather in ((whole, False), (own, True)):
        leaf = inputs.embeddings.bfloat16().requires_grad_()
        value = CircleLoss(gamma=4, gather_across_devices=gather)(leaf, inputs.labels)
        value.backward()
        assert leaf.grad.dtype == torch.bfloat16
        results.append(value.detach())
    return relative(results[1], results[0])


def second_derivatives(world: int) -> float:
    """The gradient of the squared norm of the encoder's gradient, on the dense path."""
    whole, own = _sets(extra_documents, world)
    found = []
    for inputs, gather in ((whole, False), (own, True)):
        model = encoder()
        loss = InfoNCELoss(temperature=1, symmetric=True, path="dense", gather_across_devices=gather)
        value = loss(model(inputs.queries), model(inputs.documents))
        first = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        if gather:  # the average over processes, under autograd
            first = [_average_under_autograd(gradient) for gradient in first]
        second = sum(gradient.square().sum() for gradient in first)
        second.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([average(gradient) if gather else gradient for gradient in gradients])
    return max(relative(mine, other) for mine, other in zip(found[1], found[0], strict=True))


def _average_under_autograd(gradient: Tensor) -> Tensor:
    rows = shards({"gradient": gradient.reshape(1, -1)})["gradient"]
    return rows.gather(gradient.reshape(1, -1)).mean(0).view_as(gradient)


def unlike_arguments_are_refused(world: int) -> float:
    """On all processes alike, in place of waiting for ever."""
    rank = dist.get_rank()
    x, ids = points(3, torch.Generator().manual_seed(rank)), torch.arange(3)
    calls = [
        lambda: InfoNCELoss(gather_across_devices=True)(x, x, query_ids=ids if rank else None),
        lambda: (
            CircleLoss(gather_across_devices=True)(x, ids, ref_emb=x[:2] if rank else None, ref_labels=ids[:2])
            if rank
            else CircleLoss(gather_across_devices=True)(x, ids)
        ),
        lambda: CircleLoss(gather_across_devices=True)(x[:, : DIM - rank], ids),
    ]
    refused = 0
    for call in calls:
        try:
            call()
        except InputError as error:
            refused += "differs between processes" in str(error)
    return float(refused != len(calls))


def merged_statistics(world: int) -> float:
    """Of unequal parts, value and gradient, some of them without anything selected."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(world, 5, 4, generator=generator, dtype=torch.float64)  # (processes, columns, statistics)
    table[:, 1, 1] = -torch.inf  # selected nowhere
    table[0, 2, 1] = -torch.inf  # selected elsewhere only
    own = table[dist.get_rank()].clone().requires_grad_()
    every = table.clone().requires_grad_()
    kinds: dict[str, Statistic] = {
        "sum": Sum("columns"),
        "lse": LogSumExp("columns"),
        "max": Maximum("columns"),
        "all": Sum("all"),
        "rows": Sum("rows"),
    }
    shard = shards({"rows": own})["rows"]
    parts = {"sum": own[:, 0], "lse": own[:, 1], "max": own[:, 2], "all": own[:, 3].sum(), "rows": own[:, 0]}
    found = _over_processes(parts, kinds, shard)
    expected = {
        "sum": every[..., 0].sum(0),
        "lse": every[..., 1].logsumexp(0),
        "max": every[..., 2].amax(0),
        "all": every[..., 3].sum(),
        "rows": every[..., 0].flatten(),
    }
    sides = []
    for statistics in (found, expected):
        weigh = [s.masked_fill(s == -torch.inf, 0.0).square().sum() for s in statistics.values()]
        sides.append(sum(weigh))
    assert torch.equal(found["lse"] == -torch.inf, expected["lse"] == -torch.inf)
    sides[0].backward()
    (wanted,) = torch.autograd.grad(sides[1], every)
    wanted = wanted.nan_to_num()[dist.get_rank()] * world
    return max(relative(sides[0].detach(), sides[1].detach()), relative(own.grad, wanted))


def columns_of_a_trainer(world: int) -> float:
    """Rows without labels and columns of negatives are classes of their own, on other processes too."""
    errors = []
    for labelled in (False, True):
        generator = torch.Generator().manual_seed(6)
        columns = [points(7, generator) for _ in range(3)]
        labels = torch.tensor([3, 1, 3, 0, 1, 2, 9]) if labelled else None
        own = torch.arange(7)[cut(7, world, "uneven")[dist.get_rank()]]
        found = []
        for rows, gather in ((torch.arange(7), False), (own, True)):
            model = encoder()
            host = ForSentenceTransformer(model, CircleLoss(gamma=4, gather_across_devices=gather))
            embeddings = [model(column[rows]) for column in columns]
            host.compute_loss_from_embeddings(embeddings, None if labels is None else labels[rows]).backward()
            found.append([p.grad for p in model.parameters()])
        errors += [relative(average(mine), other) for other, mine in zip(*found, strict=True)]
    return max(errors)


def gathered_tensors(world: int) -> float:
    """Any dtype and shape, large integers, booleans and empty parts."""
    rank = dist.get_rank()
    wholes = [
        torch.arange(2**60, 2**60 + 7),
        torch.tensor([True, False, True, True, False, False, True]),
        torch.arange(84).view(7, 3, 4).float(),
    ]
    sizes = {2: [0, 7], 3: [3, 0, 4]}[world]
    wrong = 0
    for whole in wholes:
        part = torch.split(whole, sizes)[rank]
        shard = shards({"part": part})["part"]
        wrong += not torch.equal(shard.gather(part), whole)
        wrong += shard.sizes != tuple(sizes) or not torch.equal(whole[shard.own], part)
    return float(wrong)


CHECKS = (
    random_triplets,
    named_triplets,
    random_triplets_of_mined_pairs,
    all_pairs_of_mined_pairs,
    ranked_margins,
    class_sampling,
    moving_statistics,
    automatic_bias,
    sums_of_losses,
    mixed_examples,
    synthetic_negatives,
    half_precision,
    second_derivatives,
    unlike_arguments_are_refused,
    merged_statistics,
    columns_of_a_trainer,
    gathered_tensors,
)

"""pytorch-metric-learning as a second oracle, for the losses it has too, and real miners as a source of pairs."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses import (
    CircleLoss,
    DecoupledSoftmaxLoss,
    MultiSimilarityLoss,
    ThresholdConsistentMarginLoss,
)
from tests.losses.cases import able, each
from tests.losses.inputs import LabelInputs, pairs, plain, references
from tests.losses.outcome import assert_same, oracle_outcome, outcome


@pytest.fixture(scope="module")
def pml():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners

    return losses, miners


PAIRS_OF_LOSSES = [
    (CircleLoss(), lambda losses: losses.CircleLoss()),
    (CircleLoss(m=0.25, gamma=64), lambda losses: losses.CircleLoss(m=0.25, gamma=64)),
    (MultiSimilarityLoss(), lambda losses: losses.MultiSimilarityLoss()),
    (
        MultiSimilarityLoss(alpha=1, beta=40, base=0.1),
        lambda losses: losses.MultiSimilarityLoss(alpha=1, beta=40, base=0.1),
    ),
]
TCM = [
    (ThresholdConsistentMarginLoss(), lambda losses: losses.ThresholdConsistentMarginLoss()),
    (
        ThresholdConsistentMarginLoss(2, 0.5, 0.7, 0.1),
        lambda losses: losses.ThresholdConsistentMarginLoss(
            lambda_plus=2, lambda_minus=0.5, margin_plus=0.7, margin_minus=0.1
        ),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS_OF_LOSSES + TCM, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_with_itself(pml, ours, theirs, seed):
    inputs = plain(torch.Generator().manual_seed(seed))
    assert_same(outcome(ours, inputs), outcome(theirs(pml[0]), inputs), tolerance=1e-8)


# Their Threshold-Consistent Margin reads references in the batch itself.
@pytest.mark.parametrize(("ours", "theirs"), PAIRS_OF_LOSSES, ids=lambda v: type(v).__name__)
def test_a_reference_set(pml, ours, theirs):
    inputs = references(torch.Generator().manual_seed(2))
    assert_same(outcome(ours, inputs), outcome(theirs(pml[0]), inputs), tolerance=1e-8)


def _miners(miners):
    return {
        "4-tuple": miners.MultiSimilarityMiner(epsilon=0.1),
        "3-tuple": miners.TripletMarginMiner(margin=0.2, type_of_triplets="all"),
        "hardest": miners.BatchHardMiner(),
        "pair margin": miners.PairMarginMiner(pos_margin=0.2, neg_margin=0.8),
    }


@pytest.mark.parametrize(("ours", "theirs"), PAIRS_OF_LOSSES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("miner", ["4-tuple", "3-tuple", "hardest", "pair margin"])
@pytest.mark.parametrize("with_labels", [True, False])
def test_mined_pairs(pml, ours, theirs, miner, with_labels):
    losses, miners = pml
    inputs = plain(torch.Generator().manual_seed(3))
    indices = tuple(_miners(miners)[miner](inputs.embeddings, inputs.labels))
    assert all(len(part) for part in indices)
    inputs = LabelInputs(inputs.embeddings, inputs.labels if with_labels else None, indices)
    assert_same(outcome(ours, inputs), outcome(theirs(losses), inputs), tolerance=1e-8)


@each([case for case in able("mined_pairs") if case.capabilities.inputs == "labels"])
@pytest.mark.parametrize("miner", ["4-tuple", "3-tuple", "hardest", "pair margin"])
def test_indices_of_real_miners_equal_the_naive_loop(pml, case, miner):
    inputs = plain(torch.Generator().manual_seed(4))
    inputs.indices_tuple = tuple(_miners(pml[1])[miner](inputs.embeddings, inputs.labels))
    loss = case.build()
    assert_same(outcome(loss, inputs), oracle_outcome(case, 0, loss, inputs))


def test_mining_inside_multi_similarity_equals_their_miner(pml):
    losses, miners = pml
    inputs = plain(torch.Generator().manual_seed(5))
    mined = tuple(miners.MultiSimilarityMiner(epsilon=0.1)(inputs.embeddings, inputs.labels))
    theirs = outcome(losses.MultiSimilarityLoss(), LabelInputs(inputs.embeddings, inputs.labels, mined))
    assert_same(outcome(MultiSimilarityLoss(mining_margin=0.1), inputs), theirs, tolerance=1e-8)


def test_decoupled_softmax_with_one_positive_is_their_nt_xent(pml):
    losses, _ = pml
    inputs = pairs(torch.Generator().manual_seed(6)).fresh()
    ids = torch.arange(len(inputs.queries))
    # A copy: the same labels object would make them leave the diagonal out.
    value = losses.NTXentLoss(temperature=0.1)(inputs.queries, ids, None, inputs.documents, ids.clone())
    expected = torch.autograd.grad(value, (inputs.queries, inputs.documents))
    found = outcome(DecoupledSoftmaxLoss(temperature=0.1), inputs)
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-8, atol=1e-8)
    for gradient, wanted in zip(found.gradients.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-7)

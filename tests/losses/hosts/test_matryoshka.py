"""sentence-transformers' MatryoshkaLoss around every kind of loss equals the loss of the shortened embeddings."""

from __future__ import annotations

import copy

import pytest
import torch

from nearfar.losses import ArcFaceLoss, ForSentenceTransformer, ThresholdConsistentMarginLoss, WeightedSum
from nearfar.losses.combine import LoggedParts
from tests.losses.cases import CASES, each
from tests.losses.hosts.models import DIM, assert_same_gradients, features, gradients, texts, tiny_bert

DIMS, WEIGHTS = [DIM, 8, 3], [1.0, 0.5, 0.25]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1])
# These read more than the direction of the embeddings, see test_raw_embeddings.
DIRECTIONAL = [case for case in CASES if not case.capabilities.needs_norms]


def expected_of(model, loss, columns, labels):
    """Shorten, normalise, weigh, add."""
    loss = copy.deepcopy(loss)
    host = ForSentenceTransformer(model, loss)
    host.zero_grad()
    embeddings = [model(column)["sentence_embedding"] for column in features(model, columns)]
    value = torch.zeros((), dtype=torch.float64)
    for dim, weight in zip(DIMS, WEIGHTS, strict=True):
        short = [torch.nn.functional.normalize(each_[:, :dim]) for each_ in embeddings]
        part = host.compute_loss_from_embeddings(short, labels)
        value = value + weight * (part.total() if isinstance(part, LoggedParts) else part)
    value.backward()
    return value.detach(), gradients(host)


def found_of(model, loss, columns, labels, mini_batch_size):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    host = ForSentenceTransformer(model, copy.deepcopy(loss), mini_batch_size)
    host.zero_grad()
    value = MatryoshkaLoss(model, host, DIMS, WEIGHTS)(features(model, columns), labels)
    total = value.total() if isinstance(value, LoggedParts) else value
    total.backward()
    return value, total.detach(), gradients(host)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@each(DIRECTIONAL)
def test_equals_the_loss_of_shortened_embeddings(case, mini_batch_size, bert):
    model, loss = tiny_bert(bert), case.build(dim=DIM)
    columns, labels = [texts(8, 0)], LABELS
    if case.capabilities.inputs == "documents":
        columns, labels = [texts(8, seed) for seed in range(3)], None
    value, expected = expected_of(model, loss, columns, labels)
    _, found_value, found = found_of(model, loss, columns, labels, mini_batch_size)
    torch.testing.assert_close(found_value, value, rtol=1e-9, atol=1e-11)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_parts_of_a_sum(mini_batch_size, bert):
    model = tiny_bert(bert)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = WeightedSum(
            {"head": (ArcFaceLoss(4, DIM).double(), 0.5), "margin": (ThresholdConsistentMarginLoss(), 2)}
        )
    value, expected = expected_of(model, loss, [texts(8, 0)], LABELS)
    parts, found_value, found = found_of(model, loss, [texts(8, 0)], LABELS, mini_batch_size)
    torch.testing.assert_close(found_value, value, rtol=1e-9, atol=1e-11)
    assert_same_gradients(found, expected)
    assert isinstance(parts, LoggedParts) == (mini_batch_size is None)

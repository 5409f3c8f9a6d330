"""Sums of losses."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import (
    AdaFaceLoss,
    ArcFaceLoss,
    BiXSELoss,
    CircleLoss,
    DecoupledSoftmaxLoss,
    ForSentenceTransformer,
    ICNNLoss,
    InfoNCELoss,
    NBCSoftmaxLoss,
    ThresholdConsistentMarginLoss,
    WeightedSum,
    get_loss,
)
from nearfar.losses.combine import LoggedParts
from tests.losses.inputs import CLASSES, DIM, several_positives, typical


@pytest.fixture
def batch():
    return typical(CircleLoss.capabilities)


def head() -> ArcFaceLoss:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ArcFaceLoss(CLASSES, DIM).double()


def test_value_and_gradient_of_label_losses(batch):
    base, margin, arcface = CircleLoss(), ThresholdConsistentMarginLoss(), head()
    loss = WeightedSum({base: 1, margin: 0.25, arcface: 3})
    x, y = (batch.embeddings.clone().requires_grad_() for _ in range(2))
    value = loss(x, batch.labels)
    expected = base(y, batch.labels) + 0.25 * margin(y, batch.labels) + 3 * arcface(y, batch.labels)
    torch.testing.assert_close(value, expected)
    (found,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(found, torch.autograd.grad(expected, y)[0])
    assert {name: part.item() for name, part in loss.last_parts.items()} == pytest.approx(
        {
            "CircleLoss": base(x, batch.labels).item(),
            "ThresholdConsistentMarginLoss": 0.25 * margin(x, batch.labels).item(),
            "ArcFaceLoss": 3 * arcface(x, batch.labels).item(),
        }
    )
    assert not any(part.requires_grad for part in loss.last_parts.values())


def test_arguments_reach_every_part(batch):
    base, margin = CircleLoss(), ThresholdConsistentMarginLoss()
    loss = WeightedSum([(base, 1), (margin, 2)])
    g = torch.Generator().manual_seed(3)
    references, labels = torch.randn(20, DIM, generator=g).double(), torch.randint(CLASSES, (20,), generator=g)
    options = {"ref_emb": references, "ref_labels": labels}
    x, y = batch.embeddings, batch.labels
    torch.testing.assert_close(loss(x, y, **options), base(x, y, **options) + 2 * margin(x, y, **options))
    # The very object: a sample's pair with itself is left out.
    itself = {"ref_emb": x, "ref_labels": y}
    torch.testing.assert_close(loss(x, y, **itself), loss(x, y))


def test_value_of_document_losses():
    inputs = several_positives(torch.Generator().manual_seed(0))
    first, second = DecoupledSoftmaxLoss(), InfoNCELoss()
    loss = WeightedSum({first: 0.5, second: 2})
    torch.testing.assert_close(inputs.call(loss), 0.5 * inputs.call(first) + 2 * inputs.call(second))


def test_a_label_loss_beside_a_document_loss():
    g = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(6, DIM, generator=g) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, 3, 1])
    base, margin = DecoupledSoftmaxLoss(), ThresholdConsistentMarginLoss()
    loss = WeightedSum({"base": (base, 1), "margin": (margin, 0.5)})
    host = ForSentenceTransformer(torch.nn.Identity(), loss)
    parts = host.compute_loss_from_embeddings([queries, documents], labels)
    torch.testing.assert_close(parts["base"], base(queries, documents, query_ids=labels))
    both = torch.cat([queries, documents])
    torch.testing.assert_close(parts["margin"], 0.5 * margin(both, torch.cat([labels, labels])))
    assert loss.capabilities.inputs == "documents"
    with pytest.raises(InputError, match="ForSentenceTransformer"):
        loss(queries, documents)


def test_sums_of_sums(batch):
    inner = WeightedSum({CircleLoss(): 1, ThresholdConsistentMarginLoss(): 0.5})
    outer = WeightedSum({"inner": (inner, 2), "head": (head(), 1)})
    x, y = batch.embeddings, batch.labels
    torch.testing.assert_close(outer(x, y), 2 * inner(x, y) + head()(x, y))
    parts = ForSentenceTransformer(torch.nn.Identity(), outer).compute_loss_from_embeddings([x], y)
    torch.testing.assert_close(parts["inner"], 2 * inner(x, y))


def test_losses_of_pytorch_metric_learning(batch):
    foreign, own = get_loss("pml:ContrastiveLoss"), ThresholdConsistentMarginLoss()
    x, y = batch.embeddings, batch.labels
    loss = WeightedSum({foreign: 1, own: 0.5})
    torch.testing.assert_close(loss(x, y), foreign(x, y) + 0.5 * own(x, y))
    assert loss.settings()["parts"]["ContrastiveLoss"] == {"loss": "ContrastiveLoss", "weight": 1.0}


def test_names():
    assert list(WeightedSum([(CircleLoss(), 1), (CircleLoss(m=0.25), 1)]).parts) == ["CircleLoss", "CircleLoss_2"]
    assert list(WeightedSum({"base": (CircleLoss(), 1), "tcm": (CircleLoss(), 1)}).parts) == ["base", "tcm"]


def test_capabilities_are_those_of_all_parts():
    both = WeightedSum({CircleLoss(): 1, ICNNLoss(): 1}).capabilities
    assert (both.inputs, both.reference_set, both.mined_pairs, both.streams) == ("labels", True, False, False)
    assert not both.unreduced
    assert not both.needs_norms
    assert WeightedSum({CircleLoss(): 1, ThresholdConsistentMarginLoss(): 1}).capabilities.mined_pairs
    assert WeightedSum({CircleLoss(): 1, AdaFaceLoss(3, 4): 1}).capabilities.needs_norms
    assert WeightedSum({DecoupledSoftmaxLoss(): 1, BiXSELoss(): 1}).capabilities.inputs == "documents"


def test_an_argument_that_a_part_cannot_honour_raises(batch):
    loss = WeightedSum({CircleLoss(): 1, head(): 1})
    with pytest.raises(InputError, match="ArcFaceLoss cannot honour ref_emb"):
        loss(batch.embeddings, batch.labels, ref_emb=batch.embeddings, ref_labels=batch.labels)


def test_settings_and_citations():
    loss = WeightedSum({"base": (CircleLoss(m=0.25), 1), "tcm": (ThresholdConsistentMarginLoss(), 0.5)})
    assert loss.settings()["parts"]["base"] == {"loss": "CircleLoss", "weight": 1.0, **CircleLoss(m=0.25).settings()}
    assert loss.settings()["parts"]["tcm"]["margin_plus"] == 0.9
    assert loss.citation == f"{CircleLoss.citation}\n\n{ThresholdConsistentMarginLoss.citation}"
    assert loss.paper == f"{CircleLoss.paper}, {ThresholdConsistentMarginLoss.paper}"
    assert WeightedSum([(CircleLoss(), 1), (CircleLoss(), 1)]).citation == CircleLoss.citation
    assert "weights={'base': 1.0, 'tcm': 0.5}" in repr(loss)


def test_state_pickle_and_copies(batch):
    loss = WeightedSum({"head": (head(), 1), "nbc": (NBCSoftmaxLoss(CLASSES, DIM).double(), 0.5)})
    expected = loss(batch.embeddings.requires_grad_(), batch.labels)
    assert "parts.head.weight" in loss.state_dict()
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(again(batch.embeddings, batch.labels), expected)
    fresh = WeightedSum(
        {"head": (ArcFaceLoss(CLASSES, DIM).double(), 1), "nbc": (NBCSoftmaxLoss(CLASSES, DIM).double(), 0.5)}
    )
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(batch.embeddings, batch.labels), expected)


def test_weights_may_change_between_steps(batch):
    loss = WeightedSum({"base": (CircleLoss(), 1), "tcm": (ThresholdConsistentMarginLoss(), 0)})
    alone = loss(batch.embeddings, batch.labels)
    loss.weights["base"] = 0.5
    torch.testing.assert_close(loss(batch.embeddings, batch.labels), alone / 2)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "empty"),
        ([], "empty"),
        ([CircleLoss()], "no part of a sum"),
        ({"base": CircleLoss()}, "no part of a sum"),
        ({CircleLoss(): "1"}, "no part of a sum"),
        ({CircleLoss(): -1}, "finite number, 0 or above"),
        ({CircleLoss(): math.nan}, "finite number, 0 or above"),
        ({CircleLoss(): math.inf}, "finite number, 0 or above"),
        ({"a.b": (CircleLoss(), 1)}, "cannot name"),
        ({"": (CircleLoss(), 1)}, "cannot name"),
        ({"loss": (CircleLoss(), 1)}, "cannot name"),
        ({"steps": (CircleLoss(), 1)}, "cannot name"),
        ({"items": (CircleLoss(), 1)}, "cannot name"),
        ({CircleLoss(reduction="none"): 1}, "reduction='mean'"),
        ({ForSentenceTransformer(torch.nn.Identity(), CircleLoss()): 1}, "sum the losses first"),
    ],
)
def test_what_cannot_be_summed(losses, message):
    with pytest.raises(InputError, match=message):
        WeightedSum(losses)


def test_logged_parts_add_only_to_parts():
    parts = LoggedParts(a=torch.tensor(1.0))
    with pytest.raises(TypeError):
        parts + 1.0

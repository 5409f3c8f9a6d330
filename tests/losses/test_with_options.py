"""A loss that is always called with its options."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from nearfar.errors import InputError
from nearfar.losses import (
    CircleLoss,
    ForSentenceTransformer,
    HardNegativeMixing,
    InfoNCELoss,
    Metrix,
    MultiSimilarityLoss,
    SupConLoss,
    WeightedSum,
    WithOptions,
    as_pml,
)
from nearfar.losses.combine import capabilities_of
from nearfar.miners import EmbeddingMemory, GlobalProxyMiner
from tests.losses.cases import BY_NAME, able
from tests.losses.inputs import mined_pairs, plain, references

BOTH = {"mixing": Metrix(seed=4), "synthesis": HardNegativeMixing(seed=5)}


def fresh():
    return copy.deepcopy(BOTH)


def inputs(scenario=plain):
    return scenario(torch.Generator().manual_seed(3))


def wrapped(**options):
    return WithOptions(MultiSimilarityLoss(**options), **fresh())


@pytest.mark.parametrize(
    ("case", "scenario"),
    [
        (case, scenario)
        for case in able("mixing")
        for scenario in ((plain, references, mined_pairs) if case.capabilities.reference_set else (plain,))
    ],
    ids=lambda v: v.__name__ if callable(v) else v.name,
)
def test_it_is_the_call_with_options(case, scenario):
    options = {name: option for name, option in fresh().items() if getattr(case.capabilities, name)}
    loss, batch = WithOptions(case.build(), **options), inputs(scenario)
    given = (batch.embeddings, batch.labels, batch.indices_tuple, batch.ref_emb, batch.ref_labels)
    again = {name: copy.deepcopy(option) for name, option in options.items()}
    for _ in range(3):
        assert torch.equal(loss(*given), loss.loss(*given, **again))


def test_in_evaluation_it_is_the_loss_alone():
    batch, loss = inputs(), wrapped()
    assert torch.equal(batch.call(loss.eval()), batch.call(loss.loss))
    assert not torch.equal(batch.call(loss.train()), batch.call(loss.loss))


def test_state_and_copies_go_on_with_the_draws():
    batch, loss, file = inputs(), wrapped(), io.BytesIO()
    first = batch.call(loss)
    torch.save(loss.state_dict(), file)
    copied = pickle.loads(pickle.dumps(loss))
    later = [batch.call(loss) for _ in range(2)]
    file.seek(0)
    resumed = wrapped()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for other in (resumed, copied):
        assert all(torch.equal(batch.call(other), value) for value in later)
    assert torch.equal(batch.call(wrapped()), first)
    assert not torch.equal(first, later[0])


def test_it_stands_for_its_loss():
    loss = WithOptions(CircleLoss(m=0.3, reduction="none", path="dense", gather_across_devices=True), Metrix(seed=2))
    assert loss.capabilities.reference_set
    assert not loss.capabilities.mixing
    assert (loss.reduction, loss.path, loss.gather_across_devices, loss.splits_rows) == ("none", "dense", True, True)
    assert inputs().call(loss).shape == (16,)
    settings = loss.settings()
    assert (settings["loss"], settings["m"], settings["mixing"]["seed"]) == ("CircleLoss", 0.3, 2)
    assert loss.paper == f"{CircleLoss.paper}, {Metrix.paper}"
    assert "sun2020circle" in loss.citation
    assert "venkataramanan2022takes" in loss.citation
    assert "synthesis" not in settings
    assert "HardNegativeMixing(" in repr(wrapped())


def test_class_weights_are_seen_through():
    case = BY_NAME["proxy-anchor"]
    assert WithOptions(case.build(), Metrix()).num_classes == case.build().num_classes
    assert not hasattr(wrapped(), "num_classes")


# Hosts


def test_in_a_sum_and_in_a_pml_adapter():
    batch, loss = inputs(), wrapped()
    value = WeightedSum({loss: 2, CircleLoss(): 1})(batch.embeddings, batch.labels)
    expected = wrapped()(batch.embeddings, batch.labels)
    torch.testing.assert_close(value, 2 * expected + CircleLoss()(batch.embeddings, batch.labels))
    assert torch.equal(batch.call(as_pml(wrapped())), expected)


def test_in_a_sentence_transformer():
    batch = inputs()
    value = ForSentenceTransformer.evaluate(wrapped(), [batch.embeddings], batch.labels)
    assert torch.equal(value, batch.call(wrapped()))
    host = ForSentenceTransformer(nn.Identity(), wrapped())
    assert host.get_config_dict()["loss"] == "MultiSimilarityLoss"
    assert host.get_config_dict()["synthesis"] == HardNegativeMixing(seed=5).settings()


@pytest.mark.parametrize("kind", [MultiSimilarityLoss, SupConLoss])
def test_in_a_memory(kind):
    """The options mix remembered samples too."""
    options = {"synthesis": fresh()["synthesis"]}
    memory, old, new = EmbeddingMemory(WithOptions(kind(), **copy.deepcopy(options)), 64), inputs(), inputs(references)
    memory(old.embeddings, old.labels)
    value = memory(new.embeddings, new.labels)
    everything = torch.cat([old.embeddings, new.embeddings]), torch.cat([old.labels, new.labels])
    same = new.labels[:, None] == everything[1]
    same_sample = torch.arange(16)[:, None] + 16 == torch.arange(32)
    pairs = (*(same & ~same_sample).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
    synthesis = options["synthesis"]
    kind()(old.embeddings, old.labels, synthesis=synthesis)
    torch.testing.assert_close(value, kind()(new.embeddings, new.labels, pairs, everything[0], synthesis=synthesis))


def test_under_a_global_proxy_miner():
    batch = inputs()
    miner = GlobalProxyMiner(group_size=2, samples_per_class=2, proxy_dim=3, seed=1)
    mined = miner.wrap(wrapped(), embedding_size=6).double()
    assert capabilities_of(mined) == wrapped().capabilities
    found = mined.from_columns(
        lambda loss, columns: ForSentenceTransformer.evaluate(loss, columns, batch.labels), [batch.embeddings]
    )[0]
    assert torch.equal(found["embedding_loss"], batch.call(wrapped()))
    assert found["proxy_loss"] > 0


# Refusals


def test_a_loss_that_cannot_honour_an_option_is_refused_at_once():
    with pytest.raises(InputError, match="SupConLoss cannot honour mixing"):
        WithOptions(SupConLoss(), Metrix())
    with pytest.raises(InputError, match="ContrastiveLoss cannot honour synthesis"):
        WithOptions(BY_NAME["contrastive"].build(), synthesis=HardNegativeMixing())


@pytest.mark.parametrize(
    "loss", [InfoNCELoss(), WeightedSum({CircleLoss(): 1}), EmbeddingMemory(CircleLoss(), 8), nn.Identity(), wrapped()]
)
def test_only_label_losses_are_wrapped(loss):
    with pytest.raises(InputError, match="wrap a label loss of nearfar itself"):
        WithOptions(loss, Metrix())


def test_options_are_given_once():
    batch = inputs()
    with pytest.raises(InputError, match="no options"):
        WithOptions(CircleLoss())
    with pytest.raises(InputError, match="has its options already"):
        wrapped()(batch.embeddings, batch.labels, mixing=Metrix())


def test_the_loss_inside_names_what_it_cannot_honour():
    batch, loss = inputs(references), WithOptions(BY_NAME["proxy-anchor"].build(), Metrix())
    with pytest.raises(InputError, match="ProxyAnchorLoss cannot honour ref_emb"):
        batch.call(loss)

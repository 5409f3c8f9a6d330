"""Names, options and the way to other libraries."""

from __future__ import annotations

import functools
import inspect
import re

import pytest

import nearfar.losses
from nearfar.errors import InputError, UnknownNameError
from nearfar.losses import (
    CircleLoss,
    HardNegativeMixing,
    LabelLoss,
    Metrix,
    QueryDocumentLoss,
    WithOptions,
    get_loss,
    list_losses,
)
from tests.losses.cases import CASES, each


@each()
def test_a_loss_is_found_by_every_spelling_of_its_name(case):
    loss = case.build()
    class_name = type(loss).__name__
    options = {name: value for name, value in case.full_options().items() if name in loss.settings()}
    for name in (case.name, class_name, case.name.replace("-", "_"), class_name.lower()):
        assert type(get_loss(name, **options)) is type(loss)


def test_list_is_sorted_and_complete():
    entries = list_losses()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    exported = {
        name
        for name in nearfar.losses.__all__
        if isinstance(member := getattr(nearfar.losses, name), type)
        and issubclass(member, (LabelLoss, QueryDocumentLoss))
        and member not in (LabelLoss, QueryDocumentLoss, WithOptions)  # bases, and a wrapper
    }
    assert {entry.loss.__name__ for entry in entries} == exported


@pytest.mark.parametrize("entry", list_losses(), ids=lambda entry: entry.name)
def test_every_entry_says_what_it_is(entry):
    assert entry.summary.endswith(".")
    assert entry.loss.__doc__.count(">>>") >= 2
    assert set(entry.loss.__init__.__annotations__) - {"return"} == set(entry.options)
    for option in entry.options:
        assert f"{option}:" in entry.loss.__doc__, f"{option} is not documented"
    paper = entry.loss.paper
    assert not paper or re.match(r"https?://", paper)
    module = inspect.getmodule(entry.loss)
    assert paper in module.__doc__ + entry.loss.__doc__, "the docstring names the paper"


@pytest.mark.parametrize(
    ("name", "suggestion"), [("cirle", "circle"), ("multi-similarty", "multi-similarity"), ("icn", "icnn")]
)
def test_near_names_are_suggested(name, suggestion):
    with pytest.raises(UnknownNameError, match=f"did you mean.*{suggestion}"):
        get_loss(name)


def test_unknown_options_are_refused_and_near_ones_suggested():
    with pytest.raises(UnknownNameError, match=r"'gama'.*gamma"):
        get_loss("circle", gama=3)
    with pytest.raises(InputError, match="num_classes"):
        get_loss("linear-softmax")


def test_losses_of_other_libraries():
    from pytorch_metric_learning.losses import SupConLoss
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = get_loss("pml:SupConLoss", temperature=0.2)
    assert isinstance(loss, SupConLoss)
    assert loss.temperature == 0.2
    factory = get_loss("st:MultipleNegativesRankingLoss", scale=30)
    assert isinstance(factory, functools.partial)
    assert factory.func is MultipleNegativesRankingLoss
    assert factory.keywords == {"scale": 30}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pml:SupConLos", {}, "SupConLoss"),
        ("st:MultipleNegativeRankingLoss", {}, "MultipleNegativesRankingLoss"),
        ("pml:BaseMetricLossFunction", {}, "unknown loss"),
        ("timm:Loss", {}, "pml"),
        ("st:MultipleNegativesRankingLoss", {"scal": 3}, "scale"),
    ],
)
def test_mistakes_in_the_names_of_other_libraries(name, options, message):
    with pytest.raises(UnknownNameError, match=message):
        get_loss(name, **options)


def test_every_case_is_listed_once():
    assert len({case.name for case in CASES}) == len(CASES)


def test_options_of_the_call_are_given_to_every_call():
    loss = get_loss("circle", gamma=64, mixing={"alpha": 1.5}, synthesis=True)
    assert isinstance(loss, WithOptions)
    assert (loss.loss.gamma, loss.mixing.alpha, loss.synthesis.settings()) == (64, 1.5, HardNegativeMixing().settings())
    made = Metrix()
    assert get_loss("circle", mixing=made).mixing is made
    assert isinstance(get_loss("circle", mixing=False, synthesis=None), CircleLoss)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("circle", {"mixing": 3}, "mixing=3 must be true, or a table of options of Metrix"),
        ("circle", {"mixing": HardNegativeMixing()}, "must be true, or a table of options of Metrix"),
        ("circle", {"mixing": {"alfa": 1}}, "'alfa'; did you mean alpha"),
        ("supcon", {"mixing": True}, "SupConLoss cannot honour mixing"),
        ("bixse", {"synthesis": True}, "BiXSELoss is not called with options"),
        ("pml:CircleLoss", {"mixing": True}, "cannot be made from options {'mixing': True}"),
    ],
)
def test_a_loss_that_cannot_honour_options_of_the_call_says_so(name, options, message):
    with pytest.raises(InputError, match=message):
        get_loss(name, **options)

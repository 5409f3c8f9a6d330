"""Data sets of tensors: what they refuse, where their labels are, how they are embedded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import Subset

from nearfar.errors import InputError
from nearfar.retrieval import TensorData, embed
from nearfar.retrieval.training.tensor_data import labels_of
from tests.retrieval.training.module_runs import TRAIN, Pairs, network


def test_embed_keeps_modes_order_and_precision():
    module = network()
    module[1].eval()
    found = embed(module, TRAIN, batch_size=7)
    assert module.training
    assert not module[1].training
    with torch.no_grad():
        expected = copy.deepcopy(module).eval()(TRAIN.inputs)
    torch.testing.assert_close(found, expected)
    assert embed(module.double(), TensorData(TRAIN.inputs.double(), TRAIN.labels)).dtype == torch.float64


def test_labels_are_found_without_reading_samples():
    data = Pairs(TRAIN)
    assert torch.equal(labels_of(Subset(data, [3, 1])), TRAIN.labels[[3, 1]])
    assert data.read == 0
    del data.targets
    assert torch.equal(labels_of(data), TRAIN.labels)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.ones(3, 2), [0, 1], "labels has shape \\(2,\\) for 3 inputs"),
        (torch.ones(2, 2), [0.0, 1.0], "labels are float32"),
        (torch.ones(0, 2), [], "at least one sample"),
    ],
)
def test_tensor_data_checks_what_it_is_given(inputs, labels, message):
    with pytest.raises(InputError, match=message):
        TensorData(inputs, labels)

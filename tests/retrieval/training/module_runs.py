"""Small runs of plain modules on tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from nearfar.retrieval import TensorData, fine_tune

CLASSES, DIM = 6, 8
SETTINGS = {"batch_size": 12, "learning_rate": 1e-2, "show_progress": False, "epochs": 3}


def points(seed=0, per_class=10):
    """Classes around their centres, drowned in noise of the other half of the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(per_class)
    centres = torch.randn(CLASSES, DIM // 2, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(labels), DIM, generator=generator)
    signal = torch.cat([centres[labels], 3 * torch.ones(len(labels), DIM // 2)], 1)
    return TensorData(signal + noise * torch.tensor([0.4] * (DIM // 2) + [3.0] * (DIM // 2)), labels)


TRAIN, HELD_OUT = points(), points(seed=1)


def network(dropout=0.2):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(DIM, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 4))


def run(folder, module=None, train=TRAIN, loss="circle", **options):
    module = network() if module is None else module
    return fine_tune(module, train, loss=loss, output_dir=folder, **{**SETTINGS, **options})


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def differ(one, other):
    return any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


class Pairs(Dataset):
    """As torchvision's data sets are: samples made one by one, a list of targets."""

    def __init__(self, data):
        self.data, self.targets, self.read = data, data.labels.tolist(), 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        self.read += 1
        inputs, label = self.data[row]
        return inputs.numpy(), int(label)

"""Circle loss with all pairs of the batch in one decision."""

from __future__ import annotations

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import CircleLoss

X = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("m", "gamma", "expected"), [(0.25, 2, 2.736670), (0.4, 80, 39.093147), (0.25, 256, 173.493147)]
)
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_worked_numbers(m, gamma, expected, path):
    loss = CircleLoss(m, gamma, grouping="all_pairs", path=path)
    assert loss(X, LABELS).item() == pytest.approx(expected, abs=1e-6)
    assert loss(X.float(), LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_a_mined_pair_counts_once_whichever_end_is_its_anchor():
    loss = CircleLoss(0.25, 2, grouping="all_pairs")
    a1, p = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2])
    a2, n = torch.tensor([0, 0, 2, 3, 1, 1]), torch.tensor([2, 3, 1, 1, 2, 3])
    torch.testing.assert_close(loss(X, None, (a1, p, a2, n)), loss(X, LABELS))


def test_there_is_no_value_per_row():
    with pytest.raises(InputError, match="all_pairs"):
        CircleLoss(grouping="all_pairs", reduction="none")


def test_unknown_grouping():
    with pytest.raises(InputError, match="grouping='class'"):
        CircleLoss(grouping="class")

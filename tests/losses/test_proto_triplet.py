"""Proto-Triplet: the numbers of the specification, and both ways to split a batch."""

from __future__ import annotations

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import ProtoTripletLoss

SUPPORT = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
QUERIES = torch.tensor([[0.5, 0.0], [1.2, 0.0], [0.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.3), (1.0, 0.466667)])
@pytest.mark.parametrize("path", ["streamed", "dense"])
def test_worked_numbers(margin, expected, path):
    loss = ProtoTripletLoss(margin, path=path)
    value = loss(QUERIES, torch.tensor([0, 0, 2]), ref_emb=SUPPORT, ref_labels=torch.tensor([0, 1, 2]))
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_value_per_query():
    loss = ProtoTripletLoss(reduction="none")
    values = loss(QUERIES, torch.tensor([0, 0, 2]), ref_emb=SUPPORT, ref_labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(values, torch.tensor([0, 0.9, 0]).double(), rtol=0, atol=1e-5)


def test_half_compares_the_second_half_with_the_means_of_the_first():
    # Class 0: support rows 0 and 1 (mean (1, 0)), query row 3. Class 1: support row 2, query row 5. Class 2: row 4.
    x = torch.tensor([[0.0, 0], [2, 0], [0, 4], [1, 1], [1, 2], [0, 3]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 2, 1])
    values = ProtoTripletLoss(margin=2.0, split="half", reduction="none")(x, labels)
    # Row 3: 1 from its own mean, 1 from the orphan of class 2. Row 5: 1 from its own, sqrt(2) from the orphan.
    expected = torch.tensor([0, 0, 0, 2.0, 0, 3 - 2**0.5], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    mean = ProtoTripletLoss(margin=2.0, split="half")(x, labels)
    assert mean.item() == pytest.approx((5 - 2**0.5) / 2, abs=1e-5)


def test_leave_one_out_leaves_the_sample_itself_out():
    x = torch.tensor([[0.0, 0], [4, 0], [1, 3]], dtype=torch.float64)
    values = ProtoTripletLoss(margin=0.0, reduction="none")(x, torch.tensor([0, 0, 1]))
    # The only sample of class 1 is no query, but a negative prototype.
    expected = torch.tensor([4 - 10**0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_a_query_without_its_class_in_the_support_does_not_count():
    loss = ProtoTripletLoss()
    with_stranger = loss(QUERIES, torch.tensor([0, 9, 2]), ref_emb=SUPPORT, ref_labels=torch.tensor([0, 1, 2]))
    without = loss(QUERIES[[0, 2]], torch.tensor([0, 2]), ref_emb=SUPPORT, ref_labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(with_stranger, without)


def test_unknown_split():
    with pytest.raises(InputError, match="split='thirds'"):
        ProtoTripletLoss(split="thirds")

"""Losses with class weights know no class for rows without a label."""

from __future__ import annotations

import pytest
import torch

from nearfar.errors import InputError
from nearfar.losses import ForSentenceTransformer
from tests.losses.cases import CASES, each
from tests.losses.inputs import DIM, points

ROWS = 6
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def embeddings(columns: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(columns)
    return [points(ROWS, g, DIM) for _ in range(columns)]


@each([case for case in CASES if case.has_classes])
def test_classes_come_from_the_label_column_alone(case):
    loss = case.build()
    host = ForSentenceTransformer(torch.nn.Identity(), loss)
    pair = embeddings(2)
    expected = case.build()(torch.cat(pair), torch.cat([LABELS, LABELS]))
    torch.testing.assert_close(host.compute_loss_from_embeddings(pair, LABELS), expected)
    for columns in (1, 2):
        with pytest.raises(InputError, match=r"no label: add an integer 'label' column$"):
            host.compute_loss_from_embeddings(embeddings(columns), None)
    with pytest.raises(InputError, match=f"none of the {loss.num_classes} classes"):
        host.compute_loss_from_embeddings(embeddings(3), LABELS)

"""Fixtures of the losses' tests."""

from __future__ import annotations

import pytest
import torch

from nearfar.losses.engine import classes, comparison


@pytest.fixture
def tiny_tiles(monkeypatch):
    """Tiles of 3 rows and 4 columns, so that even a test's batch needs many."""
    monkeypatch.setattr(comparison, "TILE_BYTES", 1)
    monkeypatch.setattr(comparison, "_FEWEST_ROWS", 3)
    monkeypatch.setattr(comparison, "_WIDEST_TILE", 4)
    monkeypatch.setattr(classes, "_TILE_BYTES", 1)
    monkeypatch.setattr(classes, "_FEWEST_CLASSES", 4)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(before)

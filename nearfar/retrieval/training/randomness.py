"""The trainer seeds the global generators; training must not change them for the caller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch on the way out."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state others use is what is kept
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

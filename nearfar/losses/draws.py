"""Random numbers that belong to a loss: a seed and a count of draws, saved with the loss, never global state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.errors import InputError


class SeededDraws(nn.Module):
    """A new generator per step, fixed by the seed and the number of steps before.

    The count of steps is part of ``state_dict()``, so a resumed run draws what the unbroken one would have drawn.

    Args:
        seed: not negative.
        stream: keeps several uses of one seed apart.

    Raises:
        InputError: for a negative seed.

    Example:
        >>> from nearfar.losses.draws import SeededDraws
        >>> first, second = SeededDraws(seed=7), SeededDraws(seed=7)
        >>> bool(first.generator().random() == second.generator().random())
        True
        >>> bool(first.generator().random() == SeededDraws(seed=7).generator().random())
        False
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        super().__init__()
        if seed < 0:
            raise InputError(f"seed={seed} must not be negative")
        self.seed, self.stream, self.steps = seed, stream, 0

    def generator(self) -> np.random.Generator:
        """The generator of the next step."""
        generator = np.random.default_rng((self.seed, self.stream, self.steps))
        self.steps += 1
        return generator

    def get_extra_state(self) -> Tensor:
        """The count, as a tensor that every format of checkpoints can hold."""
        return torch.tensor([self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a saved count."""
        self.steps = int(state)

"""One training run, one or several processes: the first one writes, all decide alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from nearfar.errors import InputError, NearfarError

T = TypeVar("T")


def process_count() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return process_rank() == 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if process_count() > 1:
        dist.barrier()


def from_first(action: Callable[[], T]) -> T:
    """Act in the first process and give all its result, or all its complaint, lest the others wait for ever.

    Args:
        action: called in the first process only. Its result must be plain data.

    Raises:
        NearfarError: in every process, when `action` raises one in the first.
    """
    if process_count() == 1:
        return action()
    message: list[Any] = [None, None]
    if is_first_process():
        try:
            message[0] = action()
        except NearfarError as error:
            message[1] = error
    complaint = message[1]
    message[1] = None if complaint is None else str(complaint)
    dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise complaint or InputError(message[1])
    result: T = message[0]
    return result

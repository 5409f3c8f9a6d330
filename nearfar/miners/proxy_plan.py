"""The plan of an epoch: groups of classes that lie close together, as Global Proxy-based Hard Mining makes them.

A random class takes its nearest classes among those that are left, until too few are left. Nearest neighbours are
searched for many random classes at once, since a matrix product is faster than many matrix-vector products; a class
that another has taken meanwhile is skipped. The result is that of taking one class after the other: nothing is
approximate.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Classes = NDArray[np.int64]

_WAVE = 0.1  # share of the remaining classes that one wave of random classes may take
_CANDIDATES = 2  # neighbours searched per member of a group; some will have been taken by classes before
_LANES = 16  # similarities of which only the best competes at first
_TILE_BYTES = 256 * 2**20  # 64 random classes against a million: a product that is not bound by reading them


def neighbour_groups(proxies: Tensor, size: int, random: np.random.Generator) -> tuple[list[Classes], Classes]:
    """Cut classes into groups of neighbours.

    Args:
        proxies: unit vectors (N, D), one a class.
        size: classes in a group.
        random: draws the class that each group is built around.

    Returns:
        Groups of ``size`` row numbers, each row in at most one, and the fewer than ``size`` rows that are left.

    Example:
        >>> import numpy as np, torch
        >>> angles = torch.tensor([0.0, 0.1, 0.21, 1.0, 1.1, 1.25])
        >>> proxies = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> groups, left = neighbour_groups(proxies, 3, np.random.default_rng(0))
        >>> sorted(sorted(group.tolist()) for group in groups), left.tolist()
        ([[0, 1, 2], [3, 4, 5]], [])
    """
    left = random.permutation(len(proxies)).astype(np.int64)
    bank = _padded(proxies[torch.from_numpy(left)])
    groups: list[Classes] = []
    while len(left) >= size:
        # The classes are in random order, so the first ones are random ones.
        seeds = max(1, int(len(left) * _WAVE / size))
        near = _nearest(bank[:seeds], bank, len(left), min(len(left), _CANDIDATES * size)).numpy()
        free = np.ones(len(left), dtype=bool)
        for seed in range(seeds):
            if not free[seed]:
                continue
            members = _with_seed(near[seed], seed)
            members = members[free[members]][:size]
            if len(members) < size:
                continue  # too many neighbours were taken: it is searched again in the next wave
            free[members] = False
            groups.append(left[members])
        left, bank = left[free], _padded(bank[: len(left)][torch.from_numpy(free)])
    return groups, left


def epoch_groups(
    visits: Classes, size: int, random: np.random.Generator, proxies: Tensor | None, random_share: float = 0.0
) -> tuple[list[Classes], Classes]:
    """Groups of an epoch in which class c appears ``visits[c]`` times, at most once in a group while that can be.

    Args:
        visits: how often each class appears, (N,).
        size: classes in a group.
        random: draws everything that is random.
        proxies: unit vectors (N, D); None for groups of random classes.
        random_share: share of the groups that are made of random classes all the same.

    Returns:
        The groups, always ``visits.sum() // size`` of them, and what is left.
    """
    remaining = visits.copy()
    groups: list[Classes] = []
    while len(alive := np.flatnonzero(remaining)) >= size:
        found = _round(alive, size, random, proxies, random_share)
        remaining[np.concatenate(found)] -= 1
        groups += found
    # Fewer classes than a group has members: those that still have visits share groups with themselves.
    rest = random.permutation(np.repeat(np.arange(len(visits)), remaining)).astype(np.int64)
    whole = len(rest) // size * size
    return [*groups, *rest[:whole].reshape(-1, size)], rest[whole:]


def _round(
    alive: Classes, size: int, random: np.random.Generator, proxies: Tensor | None, random_share: float
) -> list[Classes]:
    """Groups of classes of which each appears once."""
    alive = random.permutation(alive)
    count = len(alive) // size
    by_chance = count if proxies is None else round(count * random_share)
    cut = by_chance * size
    groups = list(alive[:cut].reshape(-1, size))
    others = alive[cut:]
    if proxies is not None and len(others) >= size:
        near, _ = neighbour_groups(proxies[torch.from_numpy(others)], size, random)
        groups += [others[group] for group in near]
    return groups


def group_hardness(proxies: Tensor, groups: list[Classes]) -> float:
    """Mean similarity of two different classes in a group, over groups of two or more; for unit vectors (N, D)."""
    means = []
    for group in groups:
        total = proxies[torch.from_numpy(group)].sum(0)  # (D,)
        means.append((float(total @ total) - len(group)) / (len(group) * (len(group) - 1)))
    return float(np.mean(means))


def _with_seed(near: Classes, seed: int) -> Classes:
    """The seed first: a class without a proxy yet is not its own nearest neighbour."""
    return np.concatenate([[seed], near[near != seed]])


def _padded(proxies: Tensor) -> Tensor:
    """Rows of zeros added, so that the number of rows is a multiple of the lanes."""
    missing = -len(proxies) % _LANES
    return torch.cat([proxies, proxies.new_zeros(missing, proxies.shape[1])]) if missing else proxies


def _nearest(seeds: Tensor, bank: Tensor, count: int, k: int) -> Tensor:
    """Rows of the k most similar of the first ``count`` rows of the bank, for each seed, (S, k), most similar first."""
    rows = max(1, _TILE_BYTES // (bank.element_size() * len(bank)))
    parts = [_nearest_in_tile(part @ bank.T, count, k) for part in torch.split(seeds, rows)]
    return torch.cat(parts)


def _nearest_in_tile(similarity: Tensor, count: int, k: int) -> Tensor:
    """Exact top-k columns of each row, of which only few are ever sorted.

    The columns stand in lanes; a slot holds one column of every lane. The k best columns are in the k slots whose best
    columns are best, so it is enough to look at these.
    """
    similarity[:, count:] = -torch.inf  # padding
    width = similarity.shape[1] // _LANES
    lanes = similarity.view(len(similarity), _LANES, width)
    slots = lanes.amax(1).topk(min(k, width), sorted=False).indices  # (S, slots)
    candidates = lanes.gather(2, slots[:, None, :].expand(-1, _LANES, -1)).flatten(1)  # (S, lanes x slots)
    best = candidates.topk(k).indices  # (S, k)
    return best // slots.shape[1] * width + slots.gather(1, best % slots.shape[1])

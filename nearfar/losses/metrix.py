"""Metrix: https://arxiv.org/abs/2106.04990 (Venkataramanan et al., ICLR 2022).

Mixup for pair losses: an anchor also meets mixtures of two examples, positive in one part and negative in the other.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice, check_positive
from nearfar.losses.draws import SeededDraws
from nearfar.losses.engine import Comparison, TargetTile
from nearfar.losses.engine.precision import full_precision
from nearfar.losses.engine.targets import Pairs
from nearfar.losses.mixtures import Mixtures, mixture_similarity

Kind = Literal["positive-negative", "anchor-negative"]
_KINDS: tuple[Kind, ...] = ("positive-negative", "anchor-negative")
_LEAST_PART = 1e-6  # of either example: a mixture has both, also after rounding to float32


class GradedPairs(NamedTuple):
    """Pairs of an anchor and an example that is positive to some degree.

    Attributes:
        anchors: row of each pair's anchor, ascending, (P,).
        similarity: cosine of each pair, (P,).
        grades: how positive, in (0, 1), (P,); the rest is negative.
        anchor_count: number of anchors, those without a pair included.
    """

    anchors: Tensor
    similarity: Tensor
    grades: Tensor
    anchor_count: int


class Metrix(nn.Module):
    r"""Mixing of embeddings, an option of the call of a pair loss: ``loss(embeddings, labels, mixing=Metrix())``.

    The loss becomes :math:`L + w L_{mixed}`. A pair loss has the form

    .. math::
        L(a) = \tau\Bigl(\sigma^+\bigl(\sum_p \rho^+(s_{ap})\bigr)
            + \sigma^-\bigl(\sum_n \rho^-(s_{an})\bigr)\Bigr)

    and its mixed part is the same of the examples that are mixed for this anchor, each a positive with weight y and a
    negative with weight 1 - y:

    .. math::
        L_{mixed}(a) = \tau\Bigl(\sigma^+\bigl(\sum_v y_v \rho^+(s_{av})\bigr)
            + \sigma^-\bigl(\sum_v (1 - y_v) \rho^-(s_{av})\bigr)\Bigr), \qquad
        v = \lambda x + (1 - \lambda) x', \quad y_v = \lambda

    x and x' are unit vectors, and v is brought to unit length again. One :math:`\lambda \sim
    \operatorname{Beta}(\alpha, \alpha)` serves a whole call. x' is a negative of the anchor; x is one of its positives
    ("positive-negative") or the anchor itself ("anchor-negative", for every anchor with a negative). Losses without
    that form refuse ``mixing``.

    An anchor has |P||N| positive-negative mixtures. Of them ``examples`` are drawn, evenly over its positives, so that
    memory grows with the batch, not with its square. Gradients reach anchor, positive and negative; no mixture is ever
    stored, since its similarity follows from those of its parts.

    Args:
        alpha: of the Beta distribution; 2 (official code).
        weight: w; 0.4 (official code, which takes 0.3 for anchor-negative mixtures of embeddings).
        pairs: "either" draws the kind of all mixtures of a call, half and half (paper, from memory), or one of the two.
        examples: most mixtures of an anchor; 16 (ours). None takes all of them, as the official code does.
        seed: of the draws. How many calls were made is part of the state, so a restored one goes on where it stopped.

    Raises:
        InputError: when ``alpha`` or ``weight`` is not above 0, ``pairs`` is unknown, ``examples`` below 1, or the seed
            negative.

    Example:
        >>> import torch
        >>> from nearfar.losses import Metrix, MultiSimilarityLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> labels, loss = torch.tensor([0, 0, 1, 1]), MultiSimilarityLoss()
        >>> bool(loss(x, labels, mixing=Metrix(seed=0)) > loss(x, labels))
        True

    Source: the official implementation, which has the contrastive loss only; the general form is from memory. There
    positive-negative mixtures repeat an anchor's first positive, and anchor-negative ones are made only for anchors
    without positives, and fail when there is none; here both are as in the paper (from memory).
    """

    paper = "https://arxiv.org/abs/2106.04990"
    citation = """@inproceedings{venkataramanan2022takes,
    title = {It Takes Two to Tango: Mixup for Deep Metric Learning},
    author = {Venkataramanan, Shashanka and Psomas, Bill and Kijak, Ewa and Amsaleg, Laurent and
        Karantzalos, Konstantinos and Avrithis, Yannis},
    booktitle = {ICLR},
    year = {2022}
}"""

    def __init__(
        self,
        alpha: float = 2.0,
        weight: float = 0.4,
        *,
        pairs: Literal["either"] | Kind = "either",
        examples: int | None = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.alpha, self.weight = check_positive("alpha", alpha), check_positive("weight", weight)
        check_choice("pairs", pairs, ("either", *_KINDS))
        self.pairs = pairs
        if examples is not None and examples < 1:
            raise InputError(f"examples={examples!r} must be at least 1, or None for all mixtures")
        self.examples, self.seed = examples, seed
        self.draws = SeededDraws(seed)

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values."""
        return {name: getattr(self, name) for name in ("alpha", "weight", "pairs", "examples", "seed")}

    def extra_repr(self) -> str:
        """The options, as ``print`` shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

    def forward(self, comparison: Comparison, path: Literal["streamed", "dense"] = "streamed") -> GradedPairs:
        """Mixtures for every anchor, and their similarities.

        Args:
            comparison: anchors and references of unit length, compared by cosine. When several processes share the
                batch, all draw the same numbers and each mixes for its own anchors.
            path: "streamed" holds a few numbers per mixture; "dense" its parts as well, and can be differentiated
                twice.
        """
        ratio, kind, spots = self._draw(comparison)
        chosen = _choose(comparison, kind, self.examples, spots)
        with full_precision(comparison.rows.device):
            similarity = mixture_similarity(comparison.in_full_precision(), chosen, ratio, path)  # (P,)
        grades = torch.full_like(similarity, ratio, requires_grad=False)
        return GradedPairs(chosen.anchors, similarity, grades, len(comparison.rows))

    def _draw(self, comparison: Comparison) -> tuple[float, Kind, Tensor | None]:
        """The ratio, the kind, and where in their range the mixtures lie, (R, examples) in [0, 1)."""
        generator, shard = self.draws.generator(), comparison.shard
        ratio = float(np.clip(generator.beta(self.alpha, self.alpha), _LEAST_PART, 1 - _LEAST_PART))
        kind = _KINDS[int(generator.random() < 0.5)] if self.pairs == "either" else self.pairs
        if self.examples is None:
            return ratio, kind, None
        # Each anchor has its numbers, whichever process it is on.
        everyones = generator.random((len(comparison.rows) if shard is None else shard.total, self.examples))
        own = everyones if shard is None else everyones[shard.own]
        return ratio, kind, torch.from_numpy(own).to(comparison.rows.device)


def _choose(comparison: Comparison, kind: Kind, examples: int | None, spots: Tensor | None) -> Mixtures:
    everything = slice(0, len(comparison.columns))
    nothing = torch.zeros(0, dtype=torch.int64, device=comparison.rows.device)
    anchors, positives, negatives = [nothing], [nothing], [nothing]
    for block in comparison.row_blocks():
        tile = comparison.target.tile(block, everything)
        own = None if spots is None else spots[block]
        row, positive, negative = _choose_in(tile, kind, examples, own)
        anchors.append(row + block.start)
        positives.append(positive)
        negatives.append(negative)
    mixed_in = torch.cat(positives) if kind == "positive-negative" else None
    return Mixtures(torch.cat(anchors), mixed_in, torch.cat(negatives))


def _choose_in(
    tile: TargetTile, kind: Kind, examples: int | None, spots: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, positive column (the row again for anchor-negative mixtures) and negative column, (P,) each."""
    rows, columns = tile.shape
    excluded, (positive_row, positive_column) = tile.non_negative_pairs(), tile.positive_pairs()
    negatives = columns - torch.bincount(excluded[0], minlength=rows)  # (rows,)
    positives = torch.bincount(positive_row, minlength=rows)  # (rows,)
    size = negatives * positives if kind == "positive-negative" else negatives  # (rows,); mixtures there are
    number = size if examples is None else size.clamp(max=examples)  # (rows,); mixtures to draw
    row = torch.repeat_interleave(torch.arange(rows, device=size.device), number)  # (P,)
    rank = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    # One from each of as many equal parts of the range: all differ, and no positive is left out.
    low, high = rank * size[row] // number[row], (rank + 1) * size[row] // number[row]
    spot = low if spots is None else low + ((high - low) * spots[row, rank]).long()
    if kind == "anchor-negative":
        return row, row, _nth_negative(excluded, row, spot, rows, columns)
    start = positives.cumsum(0) - positives  # (rows,)
    positive = positive_column[start[row] + spot // negatives[row]]
    return row, positive, _nth_negative(excluded, row, spot % negatives[row], rows, columns)


def _nth_negative(excluded: Pairs, row: Tensor, rank: Tensor, rows: int, columns: int) -> Tensor:
    """Column of each row's ``rank``-th negative, (P,), from the sorted list of what is no negative."""
    size = torch.bincount(excluded[0], minlength=rows)  # (rows,)
    start = size.cumsum(0) - size
    place = torch.arange(len(excluded[0]), device=row.device) - start[excluded[0]]
    # So many negatives of its row come before each excluded column; one key orders them all.
    before = excluded[0] * (columns + 1) + excluded[1] - place
    skipped = torch.searchsorted(before, row * (columns + 1) + rank, right=True) - start[row]
    return rank + skipped

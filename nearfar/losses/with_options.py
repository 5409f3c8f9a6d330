"""A loss with options of its call, for hosts that call it without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.contract import Capabilities, LabelLoss
from nearfar.losses.hard_negative_mixing import HardNegativeMixing
from nearfar.losses.label_batch import LabelBatch
from nearfar.losses.metrix import Metrix


class WithOptions(LabelLoss):
    """A label loss that is always called with these options, wherever a loss goes.

    Trainers, ``ForSentenceTransformer``, ``WeightedSum``, miners and memories call ``loss(embeddings, labels)``. This
    passes the options along. Their draws are part of its state, so a resumed run draws what the unbroken one would
    have drawn. They belong to training: in evaluation mode (``eval()``) the value is that of the loss alone.
    By name, as in a recipe: ``get_loss("circle", mixing=True, synthesis={"mixtures": 4})``.

    Args:
        loss: a label loss of nearfar that can honour the options. For a sum, wrap its parts; for a memory or a miner,
            the loss inside.
        mixing: see ``Metrix``.
        synthesis: see ``HardNegativeMixing``.

    Raises:
        InputError: for another kind of loss, no option at all, or one that the loss cannot honour.

    Example:
        >>> import torch
        >>> from nearfar.losses import HardNegativeMixing, Metrix, MultiSimilarityLoss, WithOptions
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
        >>> labels, loss = torch.tensor([0, 0, 1, 1]), MultiSimilarityLoss()
        >>> trained = WithOptions(loss, mixing=Metrix(), synthesis=HardNegativeMixing())
        >>> bool(trained(x, labels) == loss(x, labels, mixing=Metrix(), synthesis=HardNegativeMixing()))
        True
    """

    #: Only where the loss has class weights.
    num_classes: int

    def __init__(
        self, loss: LabelLoss, mixing: Metrix | None = None, synthesis: HardNegativeMixing | None = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, LabelLoss) or isinstance(loss, WithOptions):
            raise InputError(
                f"{type(loss).__name__} is not called with options: wrap a label loss of nearfar itself, then put it "
                "into a sum, a memory or a host"
            )
        if mixing is None and synthesis is None:
            raise InputError("WithOptions has no options: give mixing, synthesis, or both")
        loss.refuse_unsupported(mixing=mixing, synthesis=synthesis)
        self.loss, self.mixing, self.synthesis = loss, mixing, synthesis
        self.reduction, self.path, self.gather_across_devices = loss.reduction, loss.path, loss.gather_across_devices
        self.splits_rows = loss.splits_rows
        if (classes := getattr(loss, "num_classes", None)) is not None:
            self.num_classes = classes

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Those of the loss; the options are given already."""
        return replace(self.loss.capabilities, mixing=False, synthesis=False)

    @property
    def paper(self) -> str:  # type: ignore[override]
        """The papers of the loss and of its options."""
        return ", ".join(part.paper for part in (self.loss, self.mixing, self.synthesis) if part is not None)

    @property
    def citation(self) -> str:  # type: ignore[override]
        """BibTeX of all."""
        return "\n\n".join(part.citation for part in (self.loss, self.mixing, self.synthesis) if part is not None)

    def settings(self) -> dict[str, object]:
        """The loss, its settings and those of the options."""
        options = {"mixing": self.mixing, "synthesis": self.synthesis}
        given = {name: option.settings() for name, option in options.items() if option is not None}
        return {"loss": type(self.loss).__name__, **self.loss.settings(), **given}

    def extra_repr(self) -> str:
        """Nothing: the loss and the options print themselves."""
        return ""

    def refuse_unsupported(
        self,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        mixing: Metrix | None = None,
        synthesis: HardNegativeMixing | None = None,
    ) -> None:
        """Raise for an argument that the loss cannot honour."""
        if mixing is not None or synthesis is not None:
            raise InputError("WithOptions has its options already: give them all when it is made")
        self.loss.refuse_unsupported(labels, indices_tuple, ref_emb)

    def compute(self, batch: LabelBatch) -> Tensor:
        """The loss with its options, or in evaluation mode without."""
        if not self.training:
            return self.loss.compute(batch)
        return self.loss.compute_with(batch, self.mixing, self.synthesis)

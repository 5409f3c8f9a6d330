"""sentence-transformers' trainer, made exact: for the losses' own parameters, for resuming, for several processes.

What the base class leaves out and this one adds:

- The parameters of a loss (class weights, a learned scale) have their own learning rate, take part in clipping, are
  saved in checkpoints, come back on resuming and with the best model, and are alike in all processes.
- A run that is interrupted at any step and resumed ends, and logs, as the unbroken one, see ``exact_runs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.util.distributed import distributed_evaluation
from torch import Tensor, nn

from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.checkpoints import LOSS_FILE, read_tensors, write_tensors
from nearfar.retrieval.training.exact_runs import ExactRuns
from nearfar.retrieval.training.loss_parameters import (
    average_gradients,
    load_own_state,
    losses_by_prefix,
    make_alike,
    own_parameters,
    own_state,
    regroup,
)
from nearfar.retrieval.training.processes import from_first, process_count


class Trainer(ExactRuns, SentenceTransformerTrainer):
    """``SentenceTransformerTrainer`` with exact losses, checkpoints and processes.

    Args:
        loss_learning_rate: of the loss's own parameters; None for that of the model.
        options: as for ``SentenceTransformerTrainer``.
    """

    def __init__(self, *, loss_learning_rate: float | None = None, **options: Any) -> None:
        self.loss_learning_rate = loss_learning_rate
        super().__init__(**options)

    def attach(self, miner: GlobalProxyMiner) -> None:
        """Let a miner compose the batches; its state is part of every checkpoint."""
        miner.attach(self)
        self._miner = miner

    def loss_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the loss that are not the model's."""
        return own_state(self.loss, self.model)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """Train. All processes begin with the first one's loss."""
        make_alike(self.loss, self.model)
        return super().train(resume_from_checkpoint, *args, **options)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """Forward and backward pass; before a step of the optimiser, the loss's gradients are averaged as the model's.

        This comes before clipping, which must see the same gradients everywhere.
        """
        value: Tensor = super().training_step(*args, **options)
        if self.accelerator.sync_gradients:
            average_gradients(self.loss, self.model)
        return value

    def evaluate_now(self, evaluator: Any) -> dict[str, float]:
        """An evaluator's metrics of the model as it is; several processes share the encoding."""
        found: dict[str, float] = {}
        with distributed_evaluation(self.model, enabled=process_count() > 1) as runs:
            if runs:
                measured = evaluator(self.model)
                found = measured if isinstance(measured, dict) else {"score": measured}
        return from_first(lambda: {name: float(value) for name, value in found.items()})

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """Optimiser and groups; the loss's own parameters in groups of their own."""
        kind, options = super().get_optimizer_cls_and_kwargs(args, model)
        own = own_parameters(self.loss, self.model)
        if own and isinstance(options.get("optimizer_dict"), list):
            options["optimizer_dict"] = regroup(options["optimizer_dict"], own.values(), self.loss_learning_rate)
        return kind, options

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return super()._clip_grad_norm(self._with_loss(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(self._with_loss(model), grad_norm=grad_norm)

    def _with_loss(self, model: nn.Module) -> nn.Module:
        """A module of the parameters of model and loss, each once."""
        return nn.ModuleList([model, *losses_by_prefix(self.loss).values()])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Not the base class's: it compiles a model card for every checkpoint, which takes longer than all the rest, and
        # pickles the arguments, which nobody reads and which a sampler made of a local function cannot survive.
        # Some versions of transformers come here in every process.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(str(folder), create_model_card=self.args.push_to_hub)
        if state := self.loss_state():
            write_tensors(folder / LOSS_FILE, state)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        file = Path(checkpoint_path) / LOSS_FILE
        load_own_state(self.loss, self.model, read_tensors(file), file)

    def _load_best_model(self) -> None:
        # The base class logs a failure and goes on with the last model.
        best = Path(self.state.best_model_checkpoint)
        self.model.model_card_data.set_best_model_step(int(best.name.rsplit("-", 1)[1]))
        self._load_from_checkpoint(str(best))

    def part_sums(self) -> dict[str, Tensor]:
        """The parts of the loss since the last log entry, in this process."""
        return dict(self.accum_loss_components["train"])

    def restore_part_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Go on summing the parts of the loss."""
        self.accum_loss_components["train"] = dict(sums)

"""sentence-transformers' trainer, with the losses' own parameters saved and restored.

The trainer optimises the parameters of a loss (class weights, a learned scale) but neither saves them in checkpoints
nor restores them, so a resumed run or the best model would go on with fresh ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor

_LOSS_FILE = "loss.safetensors"


class Trainer(SentenceTransformerTrainer):
    """``SentenceTransformerTrainer`` whose checkpoints hold the loss as well."""

    def loss_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the loss that are not the model's."""
        state: dict[str, Tensor] = self.loss.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("model.")}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        super()._save(output_dir, state_dict)
        if state := self.loss_state():
            tensors = {name: value.contiguous().clone() for name, value in state.items()}
            save_file(tensors, Path(output_dir or self.args.output_dir) / _LOSS_FILE)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        from safetensors.torch import load_file

        super()._load_from_checkpoint(checkpoint_path)
        file = Path(checkpoint_path) / _LOSS_FILE
        if file.exists():
            self.loss.load_state_dict(load_file(file), strict=False)

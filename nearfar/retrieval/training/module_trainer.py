"""transformers' trainer for any module: encoder and loss are one model to it.

So the loss's own parameters are optimised, clipped, saved, restored with the best model and on resume, and
synchronised between processes by the same code as those of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from nearfar.errors import InputError
from nearfar.losses import WeightedSum
from nearfar.losses.engine.precision import full_precision
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval.training.exact_runs import ExactRuns
from nearfar.retrieval.training.processes import is_first_process
from nearfar.retrieval.training.tensor_data import NumberedBatches, as_is, check_embeddings, embed, labels_of

_BATCHES = "number of batches"  # no part is called so
SamplerFactory = Callable[..., Any]


class ModuleWithLoss(nn.Module):
    """An encoder with its loss. The loss runs in float32 or better, whatever autocast says.

    Args:
        encoder: maps inputs to embeddings (B, D).
        loss: is called as ``loss(embeddings, labels)``.
    """

    def __init__(self, encoder: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.encoder, self.loss = encoder, loss

    def forward(self, inputs: Any, labels: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of a batch under the name the trainer expects, and the parts of a sum by theirs."""
        embeddings = self.encoder(inputs)  # (B, D)
        check_embeddings(self.encoder, embeddings, len(labels))
        with full_precision(embeddings.device):
            raised = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            value = self.loss(raised, labels)
        parts = self.loss.last_parts if isinstance(self.loss, WeightedSum) else {}
        return {"loss": value, **parts}


class RandomBatches(BatchSampler):
    """Every sample once an epoch, in an order that the seed and the epoch decide.

    A last sample that would be a batch of its own is left out: it has nothing to be compared with, and batch
    normalisation refuses it.

    Args:
        size: number of samples N.
        batch_size: samples per batch.
        drop_last: leave out a last batch that is not full.
        seed: of the order.
    """

    def __init__(self, size: int, batch_size: int, drop_last: bool, seed: int) -> None:
        self.size, self.batch_size, self.drop_last, self.seed, self.epoch = size, batch_size, drop_last, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[first : first + self.batch_size]

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest > 1 and not self.drop_last)


class FirstLook(TrainerCallback):
    """Shows a miner whose first epoch is mined what the encoder makes of the training set, before it begins.

    Args:
        miner: the miner.
        data: the training set.
    """

    def __init__(self, miner: GlobalProxyMiner, data: Dataset[Any]) -> None:
        self.miner, self.data = miner, data

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Embed the first process's model once; sums of several processes would be multiples of the same."""
        if state.global_step == 0 and self.miner.first_epoch == "mined" and is_first_process():
            rows = torch.arange(len(self.data))  # type: ignore[arg-type]
            self.miner.look_at(embed(model.encoder, self.data), self.miner.classes_of(rows))


class ModuleTrainer(ExactRuns):
    """``transformers.Trainer`` with nearfar's batches, an evaluator, and a rate of their own for a loss's parameters.

    Args:
        model: encoder and loss.
        arguments: the trainer's.
        data: pairs (input, label).
        make_sampler: a factory of batch samplers as sentence-transformers defines it, or None for random batches. It
            is given the labels as the only column of a ``datasets.Dataset``.
        miner: composes the batches instead.
        evaluators: are called with the encoder at every evaluation; return metrics by name.
        loss_learning_rate: peak rate of the loss's own parameters; that of the encoder when None.
        callbacks: the trainer's.
    """

    control: Any  # the base class's

    def __init__(
        self,
        model: ModuleWithLoss,
        arguments: TrainingArguments,
        data: Dataset[Any],
        *,
        make_sampler: SamplerFactory | None,
        miner: GlobalProxyMiner | None,
        evaluators: Sequence[Any],
        loss_learning_rate: float | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        self._make_sampler, self._evaluators, self._loss_learning_rate = make_sampler, evaluators, loss_learning_rate
        self._parts: dict[str, Tensor] = {}  # sums since the last log entry
        self._batches = torch.zeros(())
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data,
            # Only asked for: `evaluate` calls the evaluators.
            eval_dataset=data if evaluators else None,
            callbacks=callbacks,
        )
        if miner is not None:
            # It tells training data, which it mines, by their row numbers.
            self._make_sampler = lambda table, **options: miner(miner.with_rows(table), **options)
            self._miner = miner  # whose state is part of every checkpoint
            self.add_callback(FirstLook(miner, data))
            self.add_callback(miner)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the sampler, shared out among processes."""
        arguments = self.args
        loader = DataLoader(
            NumberedBatches(self.train_dataset),
            batch_sampler=self._batch_sampler(),
            collate_fn=as_is,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker, num_workers=arguments.dataloader_num_workers, rank=arguments.process_index
            ),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _batch_sampler(self) -> Any:
        # Processes that repeat samples to fill a last batch would make positives of a sample and itself.
        drop_last = self.args.dataloader_drop_last or self.args.world_size > 1
        size, seed = self._train_batch_size, self.args.seed
        if self._make_sampler is None:
            sampler: Any = RandomBatches(len(self.train_dataset), size, drop_last, seed)
        else:
            sampler = self._make_sampler(
                _label_column(self.train_dataset),
                batch_size=size,
                drop_last=drop_last,
                valid_label_columns=["label"],
                generator=torch.Generator().manual_seed(seed),
                seed=seed,
            )
        if len(sampler) < self.args.world_size:
            raise InputError(
                f"{len(self.train_dataset)} samples make {len(sampler)} batch(es) of batch_size={size} for "
                f"{self.args.world_size} process(es); lower batch_size, or give more samples"
            )
        return sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name; the loss's own parameters move to a group with their own rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        own = {id(parameter) for parameter in self.model.loss.parameters()}
        if is_new and own and self._loss_learning_rate is not None:
            taken = [
                parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) in own
            ]
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            optimizer.add_param_group({"params": taken, "lr": self._loss_learning_rate, "weight_decay": 0.0})
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The loss; the parts of a sum are kept for the log."""
        outputs: dict[str, Tensor] = model(**inputs)
        value = outputs.pop("loss")
        for name, part in outputs.items():
            self._parts[name] = self._parts.get(name, 0) + part.detach()
        self._batches += 1
        return value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each part since the last time; they add up to the loss."""
        if "loss" in logs:
            logs |= {name: (part / self._batches).item() for name, part in self._parts.items()}
            self._parts, self._batches = {}, torch.zeros(())
        super().log(logs, start_time)

    def part_sums(self) -> dict[str, Tensor]:
        """The parts of the loss since the last log entry, and over how many batches."""
        return {**self._parts, _BATCHES: self._batches}

    def restore_part_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Go on summing the parts of the loss."""
        self._parts = dict(sums)
        self._batches = self._parts.pop(_BATCHES).cpu()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Call the evaluators with the encoder. Every process does, and finds the same."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.metrics(self.state.epoch).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def metrics(self, epoch: float = -1) -> dict[str, float]:
        """The evaluators' metrics of the encoder as it is; within training they also go to a file."""
        where = () if epoch < 0 else (str(Path(self.args.output_dir) / "eval"), epoch, self.state.global_step)
        found = [each(self.model.encoder, *where) for each in self._evaluators]
        return {name: float(value) for metrics in found for name, value in metrics.items()}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The format refuses tensors that share memory, as tied weights do, so each is saved for itself.
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value.contiguous().clone() for name, value in state.items()})


def _label_column(data: Dataset[Any]) -> Any:
    from datasets import Dataset as Table

    return Table.from_dict({"label": labels_of(data).tolist()})

"""Global Proxy-based Hard Mining: https://arxiv.org/abs/2302.14217 (Ali-bey et al., BMVC 2022).

Every class of the training set has a proxy, the mean of its embeddings; each epoch's batches are groups of classes
whose proxies lie close together: those the model confuses now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback

from nearfar.errors import InputError
from nearfar.losses.checks import check_choice
from nearfar.losses.engine.distributed import process_count
from nearfar.miners.class_rows import ClassRows
from nearfar.miners.proxy_bank import ProxyBank
from nearfar.miners.proxy_columns import RowCollator, batch_classes, text_columns, with_rows
from nearfar.miners.proxy_loss import MinedLoss, MinedSentenceLoss
from nearfar.miners.proxy_plan import epoch_groups

if TYPE_CHECKING:
    from datasets import Dataset

_SETTINGS = (
    *("group_size", "samples_per_class", "proxy_dim", "proxy_weight", "detach_proxy_input"),
    *("random_share", "visits", "leftovers", "first_epoch", "seed"),
)
_SAMPLES_PER_CLASS = 4  # of the authors' training framework, for rows that are single samples


class GlobalProxyMiner(TrainerCallback):
    """Composes every batch of classes that the model confuses, over the whole training set.

    Training computes embeddings anyway: a linear head maps them to short *proxy embeddings*, trained by the same kind
    of loss, and their mean over an epoch is the proxy of their class. An epoch is then planned as follows: a random
    class and its nearest remaining classes form a group, until too few classes remain. The first epoch is random
    unless asked for otherwise. A class that an epoch does not visit keeps its proxy.

    One object does it all. In sentence-transformers' trainer (``fine_tune(..., miner=...)`` does these steps)::

        loss = miner.wrap(CircleLoss(), model)
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss)
        miner.attach(trainer)

    In a loop of your own::

        miner.fit(labels, batch_size=256)
        for epoch in range(epochs):
            for rows in miner.batches():
                embeddings = encoder(inputs[rows])
                miner.update(embeddings, labels[rows])

    Under several processes all of them get the same plan, and the trainer gives each its share of the batches.

    Args:
        group_size: classes in a group of neighbours; 64. A batch holds as many whole groups as fit and fills up by
            making them larger, so the default suits batches from 64 classes on. The paper makes a batch one group;
            several random groups in a batch keep easy negatives in it.
        samples_per_class: rows of each class in a group. None: 1 where a row holds a query and its document, else 4
            (the authors' training framework). A class with fewer rows gives what it has.
        proxy_dim: length of the proxy embeddings; 128 (a choice: the paper's number could not be found). None: no head
            and no second loss, the proxies are means of the embeddings themselves.
        proxy_loss: trains the head; None: a copy of the wrapped loss, or for losses with class weights
            Multi-Similarity with mining, the paper's.
        proxy_weight: of the head's loss; 1 (equal weights, as re-implementations sum them).
        detach_proxy_input: keep the head's gradient from the encoder; False (trained end to end, as in the abstract).
        random_share: share of the groups that are made of random classes all the same, against unlabelled duplicates
            and forgetting; 0.
        visits: "all" visits a class until its rows are used up, so that an epoch covers the data; "once" visits every
            class once an epoch, as the paper does.
        first_epoch: "random" (the paper's), or "mined": the trainer first encodes the training set with the model as it
            is, which pays where the model knows something already. In a loop of your own, call `update` first instead.
        leftovers: "drop" gives full batches only (as re-implementations mostly do), "keep" a smaller last one too.
        seed: of everything that is random.

    Raises:
        InputError: for a number out of range, and from `fit` where the classes do not fill a batch.

    Example:
        >>> import torch
        >>> from nearfar.miners import GlobalProxyMiner
        >>> miner = GlobalProxyMiner(group_size=2, samples_per_class=1, seed=0)
        >>> labels = torch.tensor([3, 1, 7, 5])
        >>> miner.fit(labels, batch_size=2)
        >>> [len(rows) for rows in miner.batches()]
        [2, 2]
        >>> positions = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.1], [-1.0, 0.0]])
        >>> miner.update(positions, labels)
        >>> sorted(sorted(rows) for rows in miner.batches())
        [[0, 2], [1, 3]]

    When to use it: on unseen HPO terms (``benchmarks/results/mining.md``), batches mined without a head and from the
    first epoch on raise the decoupled softmax by 2.4 points of R@1 and leave Circle and Multi-Similarity, which weigh
    hard pairs themselves, about where they are; BiXSE loses 1.1. In one short epoch of a transformer, whose every batch
    was one neighbourhood, all but the softmax lost (``mining_minilm.md``). Compare with random batches on your data.

    Source: the paper's abstract; its body could not be read and its code was never published, so the outline follows
    public re-implementations where they agree (see the arguments). Proxies are normalised again, which those do not do.
    """

    def __init__(
        self,
        *,
        group_size: int = 64,
        samples_per_class: int | None = None,
        proxy_dim: int | None = 128,
        proxy_loss: nn.Module | None = None,
        proxy_weight: float = 1.0,
        detach_proxy_input: bool = False,
        random_share: float = 0.0,
        visits: Literal["all", "once"] = "all",
        leftovers: Literal["drop", "keep"] = "drop",
        first_epoch: Literal["random", "mined"] = "random",
        seed: int = 0,
    ) -> None:
        for name, number in (
            ("group_size", group_size),
            ("samples_per_class", samples_per_class),
            ("proxy_dim", proxy_dim),
        ):
            if number is not None and number < 1:
                raise InputError(f"{name}={number!r} must be at least 1")
        if not 0 <= random_share <= 1:
            raise InputError(f"random_share={random_share!r} is a share: between 0 and 1")
        if not proxy_weight >= 0:
            raise InputError(f"proxy_weight={proxy_weight!r} must be 0 or above")
        check_choice("visits", visits, ("all", "once"))
        check_choice("leftovers", leftovers, ("drop", "keep"))
        check_choice("first_epoch", first_epoch, ("random", "mined"))
        self.group_size, self.samples_per_class = group_size, samples_per_class
        self.proxy_dim, self.proxy_loss, self.proxy_weight = proxy_dim, proxy_loss, proxy_weight
        self.detach_proxy_input = detach_proxy_input
        self.random_share, self.visits, self.leftovers, self.seed = random_share, visits, leftovers, seed
        self.first_epoch = first_epoch
        self._wrapped: MinedLoss | None = None
        self.device = torch.device("cpu")
        self.epoch: int | None = None
        self._saved_to: Path | None = None
        self._forget_data()

    def _forget_data(self) -> None:
        self._rows: ClassRows | None = None
        self._bank: ProxyBank | None = None
        self._samples = self._groups_per_batch = self._group = 0
        self.drops_leftovers = self.leftovers == "drop"
        self._plan: list[list[int]] | None = None

    def settings(self) -> dict[str, object]:
        """The constructor's options and their values, for recipes."""
        return {name: getattr(self, name) for name in _SETTINGS}

    # A loop of one's own

    def fit(self, labels: Tensor | NDArray[Any] | Sequence[Any], batch_size: int) -> None:
        """Say which classes the rows of the training set belong to.

        Args:
            labels: a label a row, integers or strings, (rows,).
            batch_size: rows of a batch, at most.

        Raises:
            InputError: for labels that are not one a row, or too few rows for one batch.
        """
        self._prepare(np.asarray(labels), batch_size, self.samples_per_class or _SAMPLES_PER_CLASS)

    def _prepare(self, labels: NDArray[Any], batch_size: int, samples: int, drop_last: bool = False) -> None:
        places = batch_size // samples
        if places < 1:
            raise InputError(f"batch_size={batch_size} holds not one class of samples_per_class={samples} rows")
        rows = ClassRows(labels)
        self._groups_per_batch = max(1, places // self.group_size)
        self._group = places // self._groups_per_batch
        self._samples, self._rows, self._bank = samples, rows, ProxyBank(len(rows))
        self._plan, self.epoch = None, None
        self.drops_leftovers = drop_last or self.leftovers == "drop"
        if not self.batches_per_epoch:
            total = int(self._visits().sum())
            raise InputError(
                f"batch_size={batch_size} takes {places} classes, and an epoch visits {len(rows)} classes {total} "
                "times in all; use a smaller batch, or leftovers='keep'"
            )

    def batches(self, epoch: int | None = None) -> Iterator[list[int]]:
        """The batches of an epoch as row numbers; the next epoch's, or those of a given one."""
        wanted = epoch if epoch is not None else 0 if self.epoch is None else self.epoch + 1
        self.begin_epoch(wanted)
        return iter(self.plan)

    def update(self, embeddings: Tensor, labels: Tensor | NDArray[Any] | Sequence[Any]) -> None:
        """Count what the encoder made of a batch towards the proxies of the next plan.

        Args:
            embeddings: (B, D), any scale.
            labels: their labels, as given to `fit`.

        Raises:
            InputError: for a label that `fit` did not see, or embeddings that are not finite.
        """
        known = self._fitted().labels
        found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        classes = np.minimum(np.searchsorted(known, found), len(known) - 1)
        if not np.array_equal(known[classes], found):
            unknown = found[known[classes] != found][0]
            raise InputError(f"label {unknown} is not among the labels given to fit(); use the same labels")
        self.count(nn.functional.normalize(embeddings.detach().float(), dim=1), torch.from_numpy(classes))

    def count(self, proxies: Tensor, classes: Tensor) -> None:
        """Count unit vectors (B, D) towards the proxies of their classes (B,), numbered as `fit` found them."""
        self._fitted()
        assert self._bank is not None
        if not bool(torch.isfinite(proxies).all()):
            raise InputError("embeddings hold NaN or infinite values: lower the learning rate, or clip gradients")
        self._bank.add(proxies, classes)

    @property
    def proxies(self) -> Tensor | None:
        """Unit vectors (N, D), one a class in the order of its label; None before an epoch has ended."""
        return None if self._bank is None else self._bank.proxies

    # Planning

    def begin_epoch(self, epoch: int) -> None:
        """Plan an epoch from what the one before has seen; asked again for the same epoch it changes nothing."""
        self._fitted()
        assert self._bank is not None
        if epoch != self.epoch:
            self._bank.end_epoch(self.device)
            self.epoch, self._plan = epoch, None
        if self._plan is None:
            self._plan = self._shared(self._make_plan(epoch))

    @property
    def plan(self) -> list[list[int]]:
        """The batches of the running epoch, as row numbers."""
        if self._plan is None:
            self.begin_epoch(self.epoch or 0)
        assert self._plan is not None
        return self._plan

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        groups, left = divmod(int(self._visits().sum()), self._group)
        if not self.drops_leftovers:
            return -(-(groups + (left > 0)) // self._groups_per_batch)
        return groups // self._groups_per_batch

    @property
    def constant_batch_size(self) -> int | None:
        """Rows of every batch; None where a class has too few rows, or the last batch is smaller."""
        is_constant = self.drops_leftovers and bool((self._fitted().sizes >= self._samples).all())
        return self._samples * self._group * self._groups_per_batch if is_constant else None

    def _make_plan(self, epoch: int) -> list[list[int]]:
        rows, bank = self._fitted(), self._bank
        assert bank is not None
        random = np.random.default_rng([self.seed, epoch])
        groups, left = epoch_groups(self._visits(), self._group, random, bank.proxies, self.random_share)
        groups = [groups[i] for i in random.permutation(len(groups))]
        if len(left):
            groups.append(left)
        drawn = rows.draw(groups, self._samples, random)
        step = self._groups_per_batch
        batches = [list(chain.from_iterable(drawn[i : i + step])) for i in range(0, len(drawn), step)]
        return batches[: self.batches_per_epoch]

    def _visits(self) -> NDArray[np.int64]:
        return self._fitted().visits(self._samples, self.visits == "once")

    def _shared(self, plan: list[list[int]]) -> list[list[int]]:
        """The plan of the first process, on all: theirs may differ in a last bit of a similarity."""
        if process_count() == 1:
            return plan
        sizes = torch.tensor([len(batch) for batch in plan], device=self.device)
        # The sizes follow from the settings and the data, so all processes have as many batches and rows.
        rows = torch.tensor(list(chain.from_iterable(plan)), device=self.device)
        dist.broadcast(sizes, 0)
        dist.broadcast(rows, 0)
        return [part.tolist() for part in torch.split(rows.cpu(), sizes.tolist())]

    def _fitted(self) -> ClassRows:
        if self._rows is None:
            raise InputError(
                "the miner knows no training set yet: call fit(labels, batch_size=...), or attach(trainer)"
            )
        return self._rows

    # sentence-transformers' trainer

    def wrap(self, loss: nn.Module, model: nn.Module | None = None, **options: Any) -> nn.Module:
        """The loss, which from now on shows the miner its embeddings and trains the proxy head.

        Args:
            loss: a loss of nearfar, or any that is called as ``loss(embeddings, labels)``.
            model: the ``SentenceTransformer`` to train. None: for a loop of your own, and the result is called as
                ``loss(embeddings, labels)``; `update` is then called by it.
            options: ``embedding_size`` (length of the embeddings; required without a model where there is a head), and
                with a model those of ``ForSentenceTransformer``.
        """
        size = options.pop("embedding_size", None)
        if model is None:
            self._wrapped = MinedLoss(loss, self, size)
            return self._wrapped
        width: Any = model.get_embedding_dimension  # of the SentenceTransformer
        self._wrapped = MinedLoss(loss, self, size or width())
        return MinedSentenceLoss(model, self._wrapped, **options)

    def with_rows(self, dataset: Dataset) -> Dataset:
        """The data set with its row numbers as a column, which this miner's collator takes out of the batch again."""
        return with_rows(dataset)

    def attach(self, trainer: Any) -> None:
        """Put the miner into a ``SentenceTransformerTrainer`` that trains a loss from `wrap`.

        Raises:
            InputError: the loss is not from `wrap`, or the training data is no single ``Dataset``.
        """
        losses = trainer.loss.modules() if isinstance(trainer.loss, nn.Module) else ()
        if not any(isinstance(part, MinedSentenceLoss) and part.miner is self for part in losses):
            raise InputError("the trainer's loss does not know this miner; make it with miner.wrap(loss, model)")
        trainer.train_dataset = with_rows(trainer.train_dataset)
        trainer.data_collator = RowCollator(trainer.data_collator)
        trainer.args.batch_sampler = self
        trainer.add_callback(self)

    def __call__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool = False,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Any:
        """A batch sampler for a data set; one without row numbers, such as evaluation data, is read in order."""
        found = batch_classes(dataset, valid_label_columns)
        if found is None:
            return torch.utils.data.BatchSampler(range(len(dataset)), batch_size, drop_last)
        labels, is_pairs = found
        samples = self.samples_per_class or (1 if is_pairs else _SAMPLES_PER_CLASS)
        self._prepare(labels, batch_size, samples, drop_last)
        return MinedBatchSampler(self)

    def classes_of(self, rows: Tensor) -> Tensor:
        """Class of each row (B,), numbered as `fit` found them, on the CPU."""
        return torch.from_numpy(self._fitted().classes)[rows.cpu()]

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None, **_: Any
    ) -> None:
        """Go on from the checkpoint that training is resumed from, or see the training set before the first epoch."""
        self.device, self._saved_to = args.device, None
        if state.global_step > 0:
            self.load(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        elif self.first_epoch == "mined" and hasattr(model, "encode"):
            self._encode(model, train_dataloader.dataset, args.eval_batch_size)

    def _encode(self, model: Any, dataset: Dataset, batch_size: int) -> None:
        """Count what the model makes of the training set; each process encodes its share."""
        was_training = model.training
        own = range(dist.get_rank() if process_count() > 1 else 0, len(dataset), process_count())
        part, classes = dataset.select(own), torch.from_numpy(self._fitted().classes[own.start :: own.step])
        for texts in text_columns(part)[:2]:  # later columns are negatives, of no class
            vectors = model.encode(part[texts], batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
            self.look_at(vectors, classes)
        model.train(was_training)

    @torch.no_grad()
    def look_at(self, embeddings: Tensor, classes: Tensor) -> None:
        """Count embeddings (B, D) of no training step, through the head of the wrapped loss if there is one.

        Args:
            embeddings: (B, D).
            classes: their classes (B,), numbered as `fit` found them.
        """
        if self._wrapped is None or self._wrapped.head is None:
            self.count(nn.functional.normalize(embeddings.float(), dim=1), classes)
            return
        self.count(self._wrapped.proxies(embeddings.clone().to(self._wrapped.head.weight.device)), classes)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Plan the epoch: the last moment before its batches are asked for."""
        self.begin_epoch(int(state.epoch or 0))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the miner's state into the checkpoint, unless the trainer, such as nearfar's, has done so."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._saved_to != folder:
            self.save(folder)

    # State

    def state(self) -> dict[str, Tensor]:
        """Proxies, running means and epoch, of this process."""
        self._fitted()
        assert self._bank is not None
        return {**self._bank.state(), "epoch": torch.tensor(-1 if self.epoch is None else self.epoch)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave; the same data must have been given before.

        Raises:
            InputError: the state is of another number of classes.
        """
        rows = self._fitted()
        assert self._bank is not None
        if len(state["counts"]) != len(rows):
            raise InputError(f"the state holds {len(state['counts'])} classes and the training set {len(rows)}")
        self._bank.load(state)
        self._plan, self.epoch = None, None if state["epoch"] < 0 else int(state["epoch"])

    def save(self, folder: str | Path) -> None:
        """Write the state of this process to a folder, complete or not at all."""
        from safetensors.torch import save_file

        path = _state_file(folder)
        partial = path.with_name(path.name + ".partial")
        save_file(self.state(), partial)
        partial.replace(path)
        self._saved_to = Path(folder)

    def load(self, folder: str | Path) -> None:
        """Read the state that `save` wrote.

        Raises:
            InputError: there is none, or it is of other data.
        """
        from safetensors.torch import load_file

        path = _state_file(folder)
        if not path.exists():
            raise InputError(f"{path} is missing: the checkpoint was not written with this miner attached")
        self.load_state(load_file(path))

    def __getstate__(self) -> dict[str, Any]:
        # The trainer pickles its arguments, this factory among them, at every checkpoint; the data would go with it.
        kept = self.__dict__.copy()
        for name in ("_rows", "_bank", "_plan", "_wrapped"):
            kept[name] = None
        return {**kept, "epoch": None}


class MinedBatchSampler:
    """The miner's batches as a batch sampler.

    Args:
        miner: whose plan is read when an epoch begins.

    Attributes:
        batch_size: rows of every batch, or None where batches differ.
        drop_last: whether all batches are full.
    """

    def __init__(self, miner: GlobalProxyMiner) -> None:
        self.miner = miner
        self.drop_last = miner.drops_leftovers
        self.batch_size = miner.constant_batch_size

    def set_epoch(self, epoch: int) -> None:
        """Plan this epoch, where no trainer's callback has done it."""
        self.miner.begin_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.miner.plan)

    def __len__(self) -> int:
        return self.miner.batches_per_epoch


def _state_file(folder: str | Path) -> Path:
    rank = dist.get_rank() if process_count() > 1 else 0
    return Path(folder) / f"global_proxy_{rank}.safetensors"

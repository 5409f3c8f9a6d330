"""Small runs, broken off and compared; in one process or several."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from nearfar.data import Document, RetrievalDataset, TrainingPairs
from nearfar.losses import AdaFaceLoss, CircleLoss, LinearSoftmaxLoss, MannWhitneyLoss, NBCSoftmaxLoss, SigLIPLoss
from nearfar.retrieval import TrainingOptions, fine_tune

WORDS = ["hand", "foot", "eye", "ear", "nose", "heart", "lung", "liver"]
PAIRS = TrainingPairs(
    [f"{how} {word}" for word in WORDS for how in ("sore", "weak")],
    [f"disorder of the {word}" for word in WORDS for _ in range(2)],
    [word for word in WORDS for _ in range(2)],
)
SETTINGS = {"batch_size": 4, "learning_rate": 1e-2, "show_progress": False, "epochs": 3}


def tiny_dataset(name="tiny"):
    corpus = {word: Document(word, f"disorder of the {word}") for word in WORDS}
    queries = {word: f"my {word} hurts" for word in WORDS}
    return RetrievalDataset(corpus, queries, {word: {word: 1} for word in WORDS}, name)


def small_model(width=16):
    """A static model that knows the words of these tests, drawn from a seed."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = [
        "?",
        *sorted({word for text in [*PAIRS.queries, *PAIRS.documents] for word in text.split()}),
        "my",
        "hurts",
    ]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    table = torch.randn(len(words), width, generator=torch.Generator().manual_seed(5))
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def parameters(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class StopAfter(TrainerCallback):
    """Breaks the run off as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def assert_equal_states(one, other):
    """Tensors, numbers and containers of them, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_states(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def everything(folder: Path):
    """All that a finished run's folder says of its end: model, loss, optimiser, schedule, generators, log."""
    checkpoint = max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    found = {
        str(path.relative_to(folder)): load_file(path)
        for part in (folder / "model", checkpoint)
        for path in sorted(part.rglob("*.safetensors"))
    }
    with safe_globals():
        for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth")]):
            found[path.name] = _plain(torch.load(path, weights_only=True))
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    found["log"] = [
        {key: value for key, value in entry.items() if not key.endswith(("_runtime", "_per_second"))}
        for entry in state["log_history"]
    ]
    return found | {"metrics": json.loads((folder / "metrics.json").read_text())}


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, torch.Tensor) else value


def in_processes(work, *arguments, world=2):
    """Call ``work(*arguments)`` in processes that find each other as ``torchrun``'s do."""
    mp.spawn(_start, (world, free_port(), work, arguments), nprocs=world)


def free_port():
    """A port below those that the system hands out by itself, so that none is taken between here and its use."""
    # Test workers are processes of their own, so they begin their search at different places.
    for port in range(15_000 + os.getpid() * 7 % 15_000, 32_000):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port below 32,000")


def _start(rank, world, port, work, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work(*arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


LOSSES = {
    "pairs": lambda **options: CircleLoss(**options),
    "head": lambda **options: NBCSoftmaxLoss(8, 16, base=LinearSoftmaxLoss(8, 16, **options), **options),
    "moving averages": lambda **options: AdaFaceLoss(8, 16, **options),
    "documents": lambda **options: SigLIPLoss(bias=-2.0, **options),
    "episode": lambda **options: MannWhitneyLoss(**options),
}
_RARE = set(TrainingOptions.model_fields)


def make_loss(kind, gather=False):
    """A loss whose parameters are drawn from a seed."""
    torch.manual_seed(1)
    return LOSSES[kind](gather_across_devices=gather)


def train(folder, kind, gather=False, loss=None, **changes):
    """A run of a small model; `changes` of its settings and options."""
    options = TrainingOptions(**{name: changes.pop(name) for name in _RARE & set(changes)})
    loss = loss or make_loss(kind, gather)
    return fine_tune(small_model(), PAIRS, loss=loss, output_dir=folder, options=options, **{**SETTINGS, **changes})

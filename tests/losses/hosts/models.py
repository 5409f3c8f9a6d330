"""A tiny random transformer, and texts for it."""

from __future__ import annotations

import torch
from torch import Tensor

DIM = 16
WORDS = ["bone", "heart", "skin", "lung", "red", "blue", "pale", "left", "right", "pain", "growth", "cyst"]


def write_parts(folder) -> str:
    """Configuration, weights and tokeniser of a BERT with two layers."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def tiny_bert(folder: str, *, dropout: float = 0.0, normalize: bool = False, dtype=torch.float64):
    """A ``SentenceTransformer`` with the same weights every time, in training mode."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    options = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    transformer = Transformer(folder, config_kwargs=options)
    modules = [transformer, Pooling(DIM, pooling_mode="mean"), *([Normalize()] if normalize else [])]
    model = SentenceTransformer(modules=modules, device="cpu").to(dtype)
    model.model_card_data.generate_widget_examples = False
    return model.train()


def texts(count: int, seed: int, words: tuple[int, int] = (1, 6)) -> list[str]:
    """Random words; ``words`` is the least and the greatest number of them."""
    g = torch.Generator().manual_seed(seed)

    def one() -> str:
        number = int(torch.randint(words[0], words[1] + 1, (1,), generator=g))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (number,), generator=g))

    return [one() for _ in range(count)]


def features(model, columns: list[list[str]]) -> list[dict[str, Tensor]]:
    """Model inputs per column, new dictionaries every time."""
    return [dict(model.preprocess(column)) for column in columns]


def gradients(module) -> dict[str, Tensor]:
    """Gradient by parameter name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], rtol=1e-9, atol=1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")

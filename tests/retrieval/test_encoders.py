"""Fingerprints over saving, loading and changing; loading errors in one line."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from nearfar.data import demo_model, minilm_model
from nearfar.errors import DataFileError, InputError
from nearfar.retrieval import fingerprint, load_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    demo_model().save(str(folder))
    return folder


def test_saving_and_loading_keeps_the_fingerprint(saved: Path) -> None:
    model = load_encoder(saved)
    assert fingerprint(model) == fingerprint(demo_model())
    model.encode(["a text", "another, longer text"])  # sets padding and truncation of some tokenizers
    assert fingerprint(model).digest == fingerprint(demo_model()).digest


@pytest.mark.slow
def test_saving_and_loading_a_transformer_keeps_the_fingerprint(tmp_path: Path) -> None:
    model = minilm_model()
    before = fingerprint(model)
    model.encode(["a text", "another, longer text"])
    assert fingerprint(model) == before
    model.save(str(tmp_path / "model"))
    loaded = load_encoder(tmp_path / "model")
    assert fingerprint(loaded) == before
    loaded.max_seq_length = 64
    assert before.differences(fingerprint(loaded)) == ["max_seq_length"]
    loaded.max_seq_length = model.max_seq_length
    loaded[1].pooling_mode = "cls"
    assert before.differences(fingerprint(loaded)) == ["modules"]


def test_every_part_counts(saved: Path) -> None:
    before = fingerprint(load_encoder(saved))

    def differences(model: SentenceTransformer) -> list[str]:
        after = fingerprint(model)
        assert after.digest != before.digest
        return before.differences(after)

    model = load_encoder(saved)
    with torch.no_grad():
        model[0].embedding.weight[123, 45] += 1e-6
    assert differences(model) == ["weights"]

    model = load_encoder(saved)
    model.prompts["query"] = "query: "
    assert differences(model) == ["prompts"]

    model = load_encoder(saved)
    model.truncate_dim = 64
    assert differences(model) == ["truncate_dim"]

    model = load_encoder(saved)
    model.append(Normalize())
    assert differences(model) == ["modules"]

    model = load_encoder(saved)
    model[0].tokenizer.add_tokens(["hypertension"])
    assert differences(model) == ["tokenizer"]

    swapped = load_encoder(saved)
    with torch.no_grad():
        swapped[0].embedding.weight.copy_(swapped[0].embedding.weight.flip(0))
    assert differences(swapped) == ["weights"]


def test_bfloat16_weights_can_be_hashed(saved: Path) -> None:
    assert len(fingerprint(load_encoder(saved).bfloat16()).digest) == 16


def test_folders_that_hold_no_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no such model folder"):
        load_encoder(tmp_path / "none")
    with pytest.raises(DataFileError, match="no such model folder"):
        load_encoder("./none-here")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFileError, match="is a file; a model is a folder"):
        load_encoder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFileError, match=r"holds neither modules\.json nor config\.json"):
        load_encoder(tmp_path / "empty")


def test_damaged_weights_are_one_line(saved: Path, tmp_path: Path) -> None:
    load_encoder(saved).save(str(tmp_path / "m"))
    os.truncate(tmp_path / "m" / "model.safetensors", 1000)
    with pytest.raises(DataFileError, match="the model cannot be loaded") as caught:
        load_encoder(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def unreachable(self: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    def not_cached(name: str, local_files_only: bool) -> None:
        assert local_files_only
        raise OSError("not in the cache\nand a second line")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", not_cached)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="the hub cannot be reached") as caught:
        load_encoder("no-such-model")
    assert asked == ["sentence-transformers/no-such-model"]
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub cannot be reached"):
        load_encoder("owner/no-such-model")
    assert len(asked) == 1


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: object, name: str, timeout: float) -> None:
        raise huggingface_hub.errors.HFValidationError("bad name")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="neither a folder here nor a model on the hub"):
        load_encoder("no--such..model")

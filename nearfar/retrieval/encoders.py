"""Loading encoders, and the fingerprint that ties an index to the encoder that filled it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict

from nearfar.errors import DataFileError, InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_HUB_TIMEOUT = 10.0  # seconds for the one question whether the hub has a model
# What a transformer's configuration holds besides the function it computes.
_IRRELEVANT_CONFIG = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "gradient_checkpointing",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class EncoderFingerprint(BaseModel):
    """What decides the vectors that an encoder gives: two encoders with one fingerprint fill one index.

    Args:
        weights: SHA-256 over all tensors of the model.
        tokenizer: SHA-256 over the tokenizers, without their padding and truncation, which change with use.
        modules: the modules in order with their configuration (pooling, normalisation, transformer).
        prompts: the prompts that are not empty, by name.
        default_prompt_name: the prompt used when none is named.
        max_seq_length: tokens after which texts are cut; None if never.
        truncate_dim: dimensions kept; None for all.

    Example:
        >>> one = EncoderFingerprint(weights="ab", tokenizer="cd", modules=["Pooling {}"])
        >>> other = one.model_copy(update={"weights": "ef"})
        >>> one.digest == other.digest, one.differences(other)
        (False, ['weights'])
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    tokenizer: str
    modules: list[str]
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    truncate_dim: int | None = None

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over all parts."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def differences(self, other: EncoderFingerprint) -> list[str]:
        """Names of the parts that differ."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]


def fingerprint(model: SentenceTransformer) -> EncoderFingerprint:
    """Return the fingerprint of an encoder; saving and loading it again does not change it.

    It hashes all weights, about half a second for each gigabyte.

    Example:
        >>> from nearfar.data import demo_model
        >>> len(fingerprint(demo_model()).digest)
        16
    """
    modules = _modules(model)
    length = model.max_seq_length
    return EncoderFingerprint(
        weights=_hash_weights(model),
        tokenizer=_hash_tokenizers(modules),
        modules=[_describe(module) for module in modules],
        prompts={name: prompt for name, prompt in model.prompts.items() if prompt},
        default_prompt_name=model.default_prompt_name,
        max_seq_length=int(length) if length is not None and length < 2**31 else None,  # "infinite" is a float
        truncate_dim=getattr(model, "truncate_dim", None),  # cross-encoders have none
    )


def _modules(model: SentenceTransformer) -> list[Any]:
    """The modules of sentence-transformers inside `model`, those inside a router as well, in order."""
    return [module for name, module in model.named_modules() if name and hasattr(module, "get_config_dict")]


def _hash_weights(model: SentenceTransformer) -> str:
    # The tensors in the order of their names, without the names: libraries rename prefixes between versions.
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_tokenizers(modules: list[Any]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is not None:
            digest.update(_serialise_tokenizer(tokenizer).encode())
    return digest.hexdigest()


def _serialise_tokenizer(tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(fast, "to_str"):
        content = json.loads(fast.to_str())
        # encode() itself sets these two, so they say what was encoded last
        content.pop("padding", None)
        content.pop("truncation", None)
    elif hasattr(tokenizer, "get_vocab"):
        content = tokenizer.get_vocab()
    else:
        content = type(tokenizer).__qualname__
    return json.dumps(content, sort_keys=True)


def _describe(module: Any) -> str:
    """Class and configuration; not the class's module path, which moves between versions."""
    config: Any = getattr(getattr(module, "model", None), "config", None)
    if hasattr(config, "to_diff_dict"):
        content = {k: v for k, v in config.to_diff_dict().items() if k not in _IRRELEVANT_CONFIG}
    else:
        content = module.get_config_dict()
    return f"{type(module).__qualname__} {json.dumps(content, sort_keys=True, default=str)}"


def load_encoder(name_or_folder: str | Path) -> SentenceTransformer:
    """Load a sentence-transformers model from a folder or, by name, from its hub or the hub's local cache.

    Args:
        name_or_folder: a folder, or a name such as "sentence-transformers/all-MiniLM-L6-v2".

    Raises:
        DataFileError: the folder is missing or its files cannot be read.
        InputError: the hub does not know the name, or cannot be reached and the model is not in its cache.

    Example:
        >>> load_encoder("./none-here")
        Traceback (most recent call last):
        nearfar.errors.DataFileError: ./none-here: no such model folder; give a saved model's folder or a hub name
    """
    from sentence_transformers import SentenceTransformer

    name = str(name_or_folder)
    if Path(name).exists():
        return _load_folder(Path(name))
    if isinstance(name_or_folder, Path) or _looks_like_path(name):
        raise DataFileError(name, "no such model folder; give a saved model's folder or a hub name")
    on_hub = _ask_hub(name)
    try:
        return SentenceTransformer(name, local_files_only=not on_hub)
    except Exception as error:  # anything at all may come out of a model's files
        if on_hub:
            raise InputError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
        raise InputError(
            f"model {name!r} is no folder here, not in the local cache, and the hub cannot be reached; "
            "give the folder of a saved model or connect to the network"
        ) from error


def _looks_like_path(name: str) -> bool:
    if Path(name).is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1:
        return True
    # "models/mine" could be a name of the hub: it is a path when its first folder exists here
    return "/" in name and Path(name).parent.is_dir()


def _ask_hub(name: str) -> bool:
    """Whether the hub can be asked for the model; one question, where loading would try for a minute.

    Raises:
        InputError: the hub answers that it has no such model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return False
    full_name = name if "/" in name else f"sentence-transformers/{name}"
    try:
        HfApi().model_info(full_name, timeout=_HUB_TIMEOUT)
    except GatedRepoError as error:
        raise InputError(f"model {name!r} needs an access token of the hub: {_first_line(error)}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"model {name!r} is neither a folder here nor a model on the hub; check the name") from error
    except Exception:  # no network, a proxy, a server's fault: the cache may still have it
        return False
    return True


def _load_folder(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    if not folder.is_dir():
        raise DataFileError(folder, "is a file; a model is a folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataFileError(folder, "permission denied; change the permissions")
    if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise DataFileError(folder, "holds neither modules.json nor config.json, so it is not a saved model")
    try:
        return SentenceTransformer(str(folder), local_files_only=True)
    except Exception as error:  # anything at all may come out of a model's files
        raise DataFileError(folder, f"the model cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

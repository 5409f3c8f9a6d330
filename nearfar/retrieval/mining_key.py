"""The key under which mined negatives are kept: everything they depend on, the model's weights first of all."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from nearfar.errors import InputError
from nearfar.miners import HardNegativeMiner
from nearfar.miners.known_answers import KnownAnswers
from nearfar.retrieval.encoders import fingerprint
from nearfar.retrieval.index.manifest import read_manifest
from nearfar.retrieval.index.vector_index import VectorIndex
from nearfar.retrieval.retriever import Retriever

_VERSION = 1  # raise it when the same settings begin to give other negatives
_IRRELEVANT = {"thresholds", "versions", "model_name_or_path"}  # change no answer of a search


def mining_key(retriever: Retriever, miner: HardNegativeMiner, answers: KnownAnswers, output: dict[str, Any]) -> str:
    """SHA-256 over the encoder, the index, the judge, the settings and the data.

    Args:
        retriever: its model's fingerprint covers weights, tokenizer, prompts and truncation; its index is named by the
            hashes of its files.
        miner: a judge that is, or belongs to, a model counts with its fingerprint. Any other judge cannot be told
            from another, so the key is then new at every call.
        answers: the queries and what answers them.
        output: settings of the output.

    Raises:
        InputError: the index on the disk is of another generation than the open one.
    """
    content = {
        "version": _VERSION,
        "encoder": fingerprint(retriever.model).digest,
        "index": _index_content(retriever.index),
        "judge": _judge_content(miner.judge),
        "settings": miner.settings(),
        "output": output,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for portion in answers.contents():
        digest.update(json.dumps(portion).encode())
    return digest.hexdigest()


def _index_content(index: VectorIndex) -> dict[str, Any]:
    manifest = read_manifest(index.path)
    if manifest.generation != index.info()["generation"]:
        raise InputError(f"index {str(index.path)!r} was changed after it was opened; open it again")
    return manifest.model_dump(mode="json", exclude=_IRRELEVANT)


def _judge_content(judge: Any) -> str | None:
    if judge is None:
        return None
    model = getattr(judge, "__self__", judge)  # the model of a bound `predict`
    if hasattr(model, "state_dict") and hasattr(model, "prompts"):
        activation = getattr(model, "activation_fn", None)
        return f"{type(model).__qualname__} {fingerprint(model).digest} {activation}"
    return secrets.token_hex(16)

"""The manifest: the one small file that says what an index holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nearfar.errors import DataFileError, IndexCorruptError
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.retrieval.encoders import EncoderFingerprint
from nearfar.retrieval.index.files import os_errors, replace_file

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2
_FORMAT_WITHOUT_THRESHOLDS = 1

Metric = Literal["cosine", "inner_product", "l2"]
Factory = Literal["flat", "ivf", "auto"]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or PurePosixPath(path).is_absolute() or "\\" in path:
        raise ValueError(f"path {path!r} leaves the folder of the index")
    if PureWindowsPath(path).drive:
        raise ValueError(f"path {path!r} leaves the folder of the index")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Model(BaseModel):
    # A field this version does not know means something this version would lose when it writes: refuse it.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileEntry(_Model):
    """A file of the index: its path relative to the folder (with "/"), its bytes and its SHA-256."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SegmentEntry(_Model):
    """An immutable segment: `count` vectors with their ids, perhaps their documents and an IVF structure."""

    name: RelativePath
    count: Annotated[int, Field(gt=0)]
    vectors: FileEntry
    ids: FileEntry
    documents: FileEntry | None = None
    faiss: FileEntry | None = None

    def files(self) -> list[FileEntry]:
        """All files of the segment."""
        return [f for f in (self.vectors, self.ids, self.documents, self.faiss) if f is not None]


class Codec(_Model):
    """The trained part that IVF segments share: an empty FAISS index with its coarse centroids."""

    file: FileEntry
    nlist: Annotated[int, Field(gt=0)]
    trained_on: Annotated[int, Field(gt=0)]


class Versions(_Model):
    """What wrote this generation."""

    nearfar: str
    faiss: str


class Manifest(_Model):
    """Everything an index holds, as of one generation; version 2 of the format added the thresholds."""

    format: Literal["nearfar-index"] = "nearfar-index"
    format_version: int = FORMAT_VERSION
    generation: Annotated[int, Field(ge=0)]
    dimension: Annotated[int, Field(gt=0)]
    metric: Metric
    factory: Factory
    normalised: bool
    count: Annotated[int, Field(ge=0)]
    encoder: EncoderFingerprint | None = None
    model_name_or_path: str | None = None
    versions: Versions
    codec: Codec | None = None
    segments: tuple[SegmentEntry, ...] = ()
    thresholds: dict[str, ThresholdCard] = {}

    def files(self) -> list[FileEntry]:
        """All files that the manifest names."""
        codec = [] if self.codec is None else [self.codec.file]
        return codec + [file for segment in self.segments for file in segment.files()]


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of `folder` atomically."""
    content = manifest.model_dump(mode="json")
    content["format_version"] = FORMAT_VERSION
    if not manifest.thresholds:  # in the older format, so that an older nearfar still reads the index
        content["format_version"] = _FORMAT_WITHOUT_THRESHOLDS
        del content["thresholds"]
    content["checksum"] = _checksum(content)
    replace_file(folder / MANIFEST_NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of `folder`.

    Raises:
        DataFileError: there is no such folder, it is no index, or it may not be read.
        IndexCorruptError: the manifest is damaged, newer than this version, or names files outside the folder.
    """
    path = folder / MANIFEST_NAME
    with os_errors(folder):
        if not folder.exists():
            raise DataFileError(folder, "no such index folder; create the index first")
        if not folder.is_dir():
            raise DataFileError(folder, "an index is a folder, and this is a file")
        if not path.exists():
            raise DataFileError(folder, f"holds no {MANIFEST_NAME}, so it is not an index")
    with os_errors(path):
        raw = path.read_bytes()
    return _parse(path, raw)


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        content = json.loads(raw)
    except ValueError:
        raise IndexCorruptError(f"{path}: not valid JSON; restore it or build the index again") from None
    if not isinstance(content, dict):
        raise IndexCorruptError(f"{path}: not an index manifest; restore it or build the index again")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IndexCorruptError(
            f"{path}: format version {version}, and this nearfar reads up to {FORMAT_VERSION}; update nearfar"
        )
    checksum = content.pop("checksum", None)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise IndexCorruptError(f"{path}: {place}: {first['msg']}; restore it or build the index again") from None
    if checksum != _checksum(content):
        raise IndexCorruptError(f"{path}: its checksum is wrong, it was altered; restore it or build the index again")
    return manifest

"""One generation of an index, opened: its manifest, its segments and where each id is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.documents import Document
from nearfar.errors import IndexCorruptError, InputError
from nearfar.retrieval.index.files import VerifiedFiles, check_hash, check_size
from nearfar.retrieval.index.manifest import FileEntry, Manifest
from nearfar.retrieval.index.results import ObjectArray, Rows
from nearfar.retrieval.index.segments import Segment
from nearfar.retrieval.index.vectors import Float32

_SHOWN_OF_A_CARD = {"kind", "threshold", "risk", "alpha", "delta", "corpus_size"}


class Snapshot:
    """The segments of one manifest. Rows are numbered through all segments, in the order of the adds.

    Args:
        root: folder of the index.
        manifest: the generation.
        opened: segments that are open already, in the manifest's order; the others are checked and opened.
    """

    def __init__(self, root: Path, manifest: Manifest, opened: Sequence[Segment] = ()) -> None:
        self.root = root
        self.manifest = manifest
        entries = manifest.segments[len(opened) :]
        known = {file.path for segment in opened for file in segment.entry.files()}
        self._check_files([file for file in manifest.files() if file.path not in known])
        self.segments = [*opened, *(Segment(root, entry, manifest) for entry in entries)]
        self._starts = [0, *accumulate(segment.count for segment in self.segments)]
        if manifest.segments and self._starts[-1] != manifest.count:
            raise IndexCorruptError(
                f"{root}: the segments hold {self._starts[-1]} vectors and the manifest says {manifest.count}; "
                "build the index again"
            )

    def _check_files(self, files: list[FileEntry]) -> None:
        verified = VerifiedFiles(self.root)
        for file in files:
            check_size(self.root / file.path, file.size)
        for file in files:
            verified.check(self.root / file.path, file.path, file.sha256)
        verified.save()

    def extended(self, manifest: Manifest, ids: list[str]) -> Snapshot:
        """The next generation, which adds a segment with `ids`, or none; open segments and positions are kept."""
        after = Snapshot(self.root, manifest, self.segments)
        if "_positions" in self.__dict__:
            positions = self._positions
            positions.update(zip(ids, range(self.manifest.count, manifest.count), strict=True))
            after.__dict__["_positions"] = positions
        return after

    @cached_property
    def ids(self) -> ObjectArray:
        """(count,) the id of each row."""
        parts = [segment.ids for segment in self.segments]
        return np.concatenate(parts) if parts else np.empty(0, dtype=object)

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions: dict[str, int] = {name: row for row, name in enumerate(self.ids)}
        if len(positions) != len(self.ids):
            raise IndexCorruptError(f"{self.root}: the ids are not unique; build the index again")
        return positions

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def rows(self, ids: Iterable[str]) -> list[int]:
        """The row of each id; an `InputError` names the first that is not there."""
        if isinstance(ids, str):
            raise InputError(f"ids must be a list of strings, got the string {ids!r}")
        names = list(ids)
        for name in names:
            if name not in self._positions:
                raise InputError(f"id {name!r} is not in index {str(self.root)!r}")
        return [self._positions[name] for name in names]

    def _locate(self, row: int) -> tuple[Segment, int]:
        number = bisect_right(self._starts, row) - 1
        return self.segments[number], row - self._starts[number]

    def document(self, row: int) -> Document | None:
        """The document of a row, if it has one."""
        segment, local = self._locate(row)
        return segment.document(local)

    def vectors(self, rows: Sequence[int]) -> Float32:
        """(n, dimension) copies of the vectors of `rows`."""
        result = np.empty((len(rows), self.manifest.dimension), dtype=np.float32)
        for i, row in enumerate(rows):
            segment, local = self._locate(row)
            result[i] = segment.vectors[local]
        return result

    def candidates(self, queries: Float32, k: int, nprobe: int | None) -> tuple[Float32, Rows]:
        """Scores and rows of the best k of every segment, side by side: (Q, C)."""
        scores = [np.empty((len(queries), 0), dtype=np.float32)]
        rows = [np.empty((len(queries), 0), dtype=np.int64)]
        for segment, start in zip(self.segments, self._starts[:-1], strict=True):
            found_scores, found_rows = segment.search(queries, k, nprobe)  # (Q, min(k, segment.count))
            found_rows[found_rows >= 0] += start
            scores.append(found_scores)
            rows.append(found_rows)
        return np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)

    def info(self) -> dict[str, Any]:
        """See `VectorIndex.info`."""
        manifest = self.manifest
        content = manifest.model_dump(
            mode="json",
            include={"generation", "count", "dimension", "metric", "factory", "normalised", "model_name_or_path"},
        )
        return content | {
            "path": str(self.root),
            "encoder": None if manifest.encoder is None else manifest.encoder.digest,
            "bytes": sum(file.size for file in manifest.files()),
            "nlist": None if manifest.codec is None else manifest.codec.nlist,
            "segments": [
                {
                    "name": segment.name,
                    "count": segment.count,
                    "kind": "flat" if segment.faiss is None else "ivf",
                    "documents": segment.documents is not None,
                }
                for segment in manifest.segments
            ],
            "thresholds": {
                name: card.model_dump(
                    mode="json", include={"kind", "threshold", "risk", "alpha", "delta", "corpus_size"}
                )
                for name, card in manifest.thresholds.items()
            },
            "versions": manifest.versions.model_dump(),
        }

    def verify(self) -> None:
        """See `VectorIndex.verify`."""
        for file in self.manifest.files():
            check_size(self.root / file.path, file.size)
            check_hash(self.root / file.path, file.sha256)
        Snapshot(self.root, self.manifest)._positions  # noqa: B018  (opens all files afresh and checks the ids)

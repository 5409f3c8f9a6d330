"""The index: a folder of immutable segments named by one manifest that is replaced atomically."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nearfar.data.documents import Document
from nearfar.errors import InputError
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.retrieval.encoders import EncoderFingerprint
from nearfar.retrieval.index import structures
from nearfar.retrieval.index.manifest import Manifest, read_manifest
from nearfar.retrieval.index.results import SearchResult, rank
from nearfar.retrieval.index.segments import DocumentLike
from nearfar.retrieval.index.snapshot import Snapshot
from nearfar.retrieval.index.thresholds import check_card, choose_card, cut
from nearfar.retrieval.index.vectors import Float32, as_matrix, unit_rows
from nearfar.retrieval.index.writer import Writer, check_documents, check_ids, versions


class VectorIndex:
    """Vectors with string ids and documents in a folder, searched by cosine, inner product or distance.

    Make one with `create`, open one with `open`. Each `add` writes one segment and then replaces the manifest,
    so a reader sees either all of an add or nothing of it, whatever happens to the writer. A reader keeps the
    generation it opened. One writer at a time holds the lock, from opening to `close`; readers need no lock and
    may search from several threads.

    An add of many vectors (from 1,000 with factory "ivf", from 50,000 with "auto") is stored as an inverted file
    (``IVF,Flat``) whose centroids are trained on the first such add and shared by the later ones. Smaller adds,
    and all adds with factory "flat", are scanned exactly.

    Example:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp()
        >>> with VectorIndex.create(folder, dimension=2) as index:
        ...     index.add(np.eye(2), ["east", "north"])
        >>> with VectorIndex.open(folder) as index:
        ...     [(hit.id, round(hit.score, 2)) for hit in index.search([[0.6, 0.8]], k=2)[0]]
        [('north', 0.8), ('east', 0.6)]
    """

    def __init__(self, path: Path, manifest: Manifest, writer: Writer | None) -> None:
        self.path = path
        self._writer = writer
        self._open = True
        self._snapshot = Snapshot(path, manifest)
        self._warned: set[tuple[float, int | None]] = set()  # cards whose warnings were given

    # Opening and closing

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        dimension: int,
        metric: str = "cosine",
        factory: str = "auto",
        encoder: EncoderFingerprint | None = None,
        model_name_or_path: str | None = None,
    ) -> VectorIndex:
        """Make an empty index in a new or empty folder and open it for writing.

        Args:
            path: the folder; parents are made.
            dimension: of the vectors.
            metric: "cosine" (vectors and queries are normalised), "inner_product", or "l2" (the score is the
                negative squared Euclidean distance, so that larger is better for every metric).
            factory: "flat" (exact), "ivf" (inverted files for adds of 1,000 and more) or "auto" (for adds of
                50,000 and more).
            encoder: fingerprint of the model that makes the vectors; `Retriever` checks it.
            model_name_or_path: where that model is, so that `Retriever.open` can load it.

        Raises:
            DataFileError: the folder is not empty, is a file, or may not be written.
            UnknownNameError: the metric or factory is not known.
            InputError: the dimension is not a positive integer.
        """
        manifest = Manifest(
            generation=0,
            dimension=structures.positive_integer(dimension, "dimension"),
            metric=structures.check_metric(metric),
            factory=structures.check_factory(factory),
            normalised=metric == "cosine",
            count=0,
            encoder=encoder,
            model_name_or_path=model_name_or_path,
            versions=versions(),
        )
        folder = Path(path)
        return cls(folder, manifest, Writer.create(folder, manifest))

    @classmethod
    def open(cls, path: str | Path, writable: bool = False) -> VectorIndex:
        """Open an index; every file's size is checked, and its SHA-256 when it was not checked before.

        Args:
            path: the folder.
            writable: take the writer's lock, so that `add` is possible.

        Raises:
            DataFileError: no such folder, not an index, or it may not be read.
            IndexCorruptError: a file is missing, truncated or altered; the message names it.
            InputError: another writer holds the lock.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not writable:
            return cls(folder, manifest, None)
        writer = Writer(folder)
        try:
            return cls(folder, writer.recover(), writer)
        except BaseException:
            writer.close()
            raise

    def close(self) -> None:
        """Release the files and the writer's lock; closing twice does nothing."""
        self._open = False
        empty = self._snapshot.manifest.model_copy(update={"segments": (), "codec": None})
        self._snapshot = Snapshot(self.path, empty)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> VectorIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    def add(self, vectors: Any, ids: Sequence[str], documents: Sequence[DocumentLike] | None = None) -> None:
        """Add vectors as one segment; when anything fails, the index is as it was.

        Args:
            vectors: (n, dimension) numpy array or torch tensor of float16, float32 or float64; kept as float32.
            ids: n strings that are new to the index.
            documents: n documents whose ids are `ids`, returned with the hits.

        Raises:
            DimensionMismatchError: the vectors have another dimension.
            DuplicateIdError: an id occurs twice, or is in the index.
            InputError: nothing to add, lengths differ, a value is not finite, a zero vector with cosine, an id
                that is no string, or an index opened for reading.
            DataFileError: the disk is full or refuses.
        """
        snapshot, writer = self._require_open(), self._require_writer()
        manifest = snapshot.manifest
        matrix = as_matrix(vectors, manifest.dimension, "vectors", ids)
        names = check_ids(ids, len(matrix), snapshot)
        check_documents(documents, names)
        if manifest.normalised:
            matrix = unit_rows(matrix, "vectors", names)
        self._snapshot = writer.add(snapshot, matrix, names, documents)

    def set_threshold(self, name: str, card: ThresholdCard) -> None:
        """Keep a calibrated threshold in the index, in place of an earlier one of that name.

        Args:
            name: to call it by in `search(matches_only=name)`.
            card: calibrated on this index's scores. Query cards cut searches; pair cards are kept for reading.

        Raises:
            InputError: the name is blank, the card is of another metric, or the index was opened for reading.
            ModelMismatchError: the card belongs to another encoder than the index.
            DataFileError: the disk is full or refuses; the index is as it was.
        """
        snapshot, writer = self._require_open(), self._require_writer()
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"a threshold's name must be a text that is not blank, got {name!r}")
        check_card(card, snapshot.manifest)
        self._snapshot = writer.set_thresholds(snapshot, {**snapshot.manifest.thresholds, name: card})

    def remove_threshold(self, name: str) -> None:
        """Remove a threshold; raises UnknownNameError where there is none of that name."""
        snapshot, writer = self._require_open(), self._require_writer()
        cards = snapshot.manifest.thresholds
        choose_card(cards, name, self.path)
        self._snapshot = writer.set_thresholds(snapshot, {own: card for own, card in cards.items() if own != name})

    def _require_writer(self) -> Writer:
        if self._writer is None:
            raise InputError(
                f"index {str(self.path)!r} was opened for reading; use VectorIndex.open(path, writable=True)"
            )
        return self._writer

    def _require_open(self) -> Snapshot:
        if not self._open:
            raise InputError(f"index {str(self.path)!r} is closed; open it again")
        return self._snapshot

    # Reading

    def search(
        self, queries: Any, k: int, *, matches_only: bool | str | ThresholdCard = False, **parameters: Any
    ) -> SearchResult:
        """Find the k best rows for each query.

        Args:
            queries: (Q, dimension) array or tensor, or one query of (dimension,).
            k: answers for each query; fewer are returned where the index holds fewer.
            matches_only: keep only hits whose score reaches a query threshold: True for the only one in the index,
                its name where there are several, or a card. A warning is given once when the index has grown by
                more than a quarter since the calibration.
            **parameters: `nprobe`, the lists looked into in each inverted file (default: the square root of
                their number, at least 8); segments that are scanned exactly ignore it.

        Returns:
            ids, scores (larger is better) and counts. Equal scores are ordered by id; which of several equal
            scores are among the k best is FAISS's choice.

        Raises:
            DimensionMismatchError: the queries have another dimension.
            InputError: k or nprobe is not positive, a query is not finite, or is zero with cosine; or the index
                holds no query threshold, or the card is of another kind or metric.
            ModelMismatchError: the card belongs to another encoder.
        """
        snapshot = self._require_open()
        manifest = snapshot.manifest
        card = self._query_card(matches_only, manifest)
        k = structures.positive_integer(k, "k")
        nprobe = structures.check_parameters(parameters)
        matrix = as_matrix(queries, manifest.dimension, "queries", single=True)
        if manifest.normalised:
            matrix = unit_rows(matrix, "queries")
        scores, rows = rank(*snapshot.candidates(matrix, k, nprobe), k, snapshot.ids)
        if card is not None:
            scores, rows = cut(scores, rows, card.threshold)
        ids = np.full(rows.shape, None, dtype=object)  # (Q, k)
        ids[rows >= 0] = snapshot.ids[rows[rows >= 0]]
        return SearchResult(ids, scores, (rows >= 0).sum(axis=1), rows, snapshot.document)

    def _query_card(self, wanted: bool | str | ThresholdCard, manifest: Manifest) -> ThresholdCard | None:
        if wanted is False:
            return None
        if not isinstance(wanted, bool | str | ThresholdCard):
            raise InputError(f"matches_only must be True, False, a threshold's name or a card, got {wanted!r}")
        if isinstance(wanted, ThresholdCard):
            card = wanted
        else:
            card = choose_card(manifest.thresholds, wanted if isinstance(wanted, str) else None, self.path, "query")
        messages = check_card(card, manifest, "query")
        if messages and (card.threshold, card.corpus_size) not in self._warned:
            self._warned.add((card.threshold, card.corpus_size))
            warnings.warn("; ".join(messages), stacklevel=3)
        return card

    def threshold(self, name: str | None = None) -> ThresholdCard:
        """A threshold that the index keeps; without a name the only one there is.

        Raises:
            UnknownNameError: there is none of that name.
            InputError: there is none at all, or there are several and no name is given.
        """
        return choose_card(self._require_open().manifest.thresholds, name, self.path)

    def get(self, ids: Iterable[str]) -> list[Document | None]:
        """The documents of `ids` (None for one that was added without a document); InputError if not there."""
        snapshot = self._require_open()
        return [snapshot.document(row) for row in snapshot.rows(ids)]

    def vectors(self, ids: Iterable[str]) -> Float32:
        """The vectors of `ids` as stored: (n, dimension) float32, of unit length for cosine."""
        snapshot = self._require_open()
        return snapshot.vectors(snapshot.rows(ids))

    def ids(self) -> list[str]:
        """All ids in the order in which they were added."""
        names: list[str] = self._require_open().ids.tolist()
        return names

    def __contains__(self, name: object) -> bool:
        return name in self._require_open()

    def __len__(self) -> int:
        return self._require_open().manifest.count

    def __repr__(self) -> str:
        manifest = self._snapshot.manifest
        return f"VectorIndex({str(self.path)!r}, {manifest.count} x {manifest.dimension}, {manifest.metric})"

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self._snapshot.manifest.dimension

    @property
    def metric(self) -> str:
        """Cosine, inner_product or l2."""
        return self._snapshot.manifest.metric

    @property
    def encoder(self) -> EncoderFingerprint | None:
        """Fingerprint of the model that fills the index."""
        return self._snapshot.manifest.encoder

    @property
    def model_name_or_path(self) -> str | None:
        """Where that model was when the index was created."""
        return self._snapshot.manifest.model_name_or_path

    def info(self) -> dict[str, Any]:
        """What the index is, ready for JSON: counts, settings, segments, bytes, encoder, thresholds, versions."""
        return self._require_open().info()

    def verify(self) -> None:
        """Hash every file again and compare what they hold with the manifest.

        Raises:
            IndexCorruptError: names the first file that is missing, truncated, altered or inconsistent.
        """
        self._require_open().verify()

    # FAISS

    @classmethod
    def from_faiss(
        cls, path: str | Path, index: Any, ids: Sequence[str], *, metric: str | None = None, factory: str = "auto"
    ) -> VectorIndex:
        """Make an index of the vectors of a FAISS index that can reconstruct them (Flat, HNSW Flat, IVF Flat).

        Args:
            path: new or empty folder.
            index: the FAISS index.
            ids: one id for each of its vectors, in their order.
            metric: default: the metric of `index`; "cosine" normalises.
            factory: as for `create`.

        Raises:
            InputError: the metric has no counterpart here, or the vectors cannot be reconstructed.
        """
        import faiss

        names = {faiss.METRIC_INNER_PRODUCT: "inner_product", faiss.METRIC_L2: "l2"}
        if metric is None and index.metric_type not in names:
            raise InputError(f"FAISS metric {index.metric_type} has no counterpart; give metric=")
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map()
        try:
            if index.ntotal:
                index.reconstruct(0)  # a refusal of reconstruct_n comes from its threads and ends the process
            vectors = index.reconstruct_n(0, index.ntotal)  # (n, d)
        except RuntimeError as error:
            raise InputError(f"{type(index).__name__} cannot give its vectors back; pass them to add()") from error
        result = cls.create(path, dimension=index.d, metric=metric or names[index.metric_type], factory=factory)
        try:
            result.add(vectors, ids)
        except BaseException:
            result.close()
            raise
        return result

    def to_faiss(self) -> tuple[Any, list[str]]:
        """Return an exact FAISS index (IndexFlat) of all vectors in memory, and the ids of its rows."""
        import faiss

        snapshot = self._require_open()
        index = faiss.IndexFlat(self.dimension, structures.faiss_metric(snapshot.manifest.metric))
        for segment in snapshot.segments:
            index.add(np.asarray(segment.vectors))  # not a memmap: faiss.contrib.torch_utils asks for the very type
        return index, self.ids()

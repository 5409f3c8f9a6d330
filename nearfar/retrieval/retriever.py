"""The retriever: an encoder tied to the index that it fills."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar.data.documents import Document
from nearfar.errors import DuplicateIdError, InputError, ModelMismatchError
from nearfar.eval.thresholds.card import ThresholdCard
from nearfar.retrieval.encoders import fingerprint, load_encoder
from nearfar.retrieval.index.results import SearchResult
from nearfar.retrieval.index.vector_index import VectorIndex
from nearfar.retrieval.index.vectors import Float32

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_DOCUMENTS = 8_192  # read and encoded at a time; bounds the texts in memory
SEGMENT_DOCUMENTS = 100_000  # written as one segment; bounds the vectors in memory and the work lost by a crash


class Retriever:
    """Encodes documents into an index and answers text queries from it.

    Args:
        model: a sentence-transformers model; `encode_document` and `encode_query` apply its prompts.
        index: an index that this very model filled, or that is to be filled.

    Raises:
        ModelMismatchError: the index records the fingerprint of another model.
        InputError: the index records no fingerprint, or the model's dimension is another.

    Example:
        >>> import tempfile
        >>> from nearfar.data import Document, demo_model
        >>> with Retriever.create(tempfile.mkdtemp(), demo_model()) as retriever:
        ...     retriever.index_documents([Document("a", "high blood pressure"), Document("b", "broken bone")])
        ...     retriever.search("hypertension", k=1)[0][0].id
        2
        'a'
    """

    def __init__(self, model: SentenceTransformer, index: VectorIndex) -> None:
        _check_model(model, index)
        self.model = model
        self.index = index

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: SentenceTransformer | str | Path,
        *,
        metric: str = "cosine",
        factory: str = "auto",
        model_name_or_path: str | Path | None = None,
    ) -> Retriever:
        """Make an empty index for a model, with its dimension and fingerprint, open for writing.

        Args:
            path: new or empty folder of the index.
            model: a loaded model, or its folder or name.
            metric: as for `VectorIndex.create`.
            factory: as for `VectorIndex.create`.
            model_name_or_path: where `Retriever.open` finds the model; default: `model` if that is a folder or
                name. A folder beside the index is recorded relative to it, so both can move together.
        """
        if isinstance(model, str | Path):
            model_name_or_path = model if model_name_or_path is None else model_name_or_path
            model = load_encoder(model)
        index = VectorIndex.create(
            path,
            dimension=_dimension(model),
            metric=metric,
            factory=factory,
            encoder=fingerprint(model),
            model_name_or_path=None if model_name_or_path is None else _record(model_name_or_path, Path(path)),
        )
        return _tie(cls, model, index)

    @classmethod
    def open(
        cls, path: str | Path, model: SentenceTransformer | str | Path | None = None, writable: bool = False
    ) -> Retriever:
        """Open an index with its model.

        Args:
            path: folder of the index.
            model: the model, or its folder or name; default: what the index recorded when it was created.
            writable: so that `index_documents` is possible.

        Raises:
            InputError: no model is given or recorded.
            ModelMismatchError: the model is not the one that filled the index.
        """
        index = VectorIndex.open(path, writable=writable)
        try:
            if model is None:
                model = _recorded(index)
            if isinstance(model, str | Path):
                model = load_encoder(model)
        except BaseException:
            index.close()
            raise
        return _tie(cls, model, index)

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def index_documents(
        self,
        documents: Iterable[Document],
        *,
        batch_size: int = 32,
        show_progress: bool = False,
        skip_existing: bool = False,
    ) -> int:
        """Encode documents (title and text) and add them; the documents may be any stream.

        A segment is written for every 100,000 documents and at the end. Ctrl-C writes what has been encoded and
        is then raised again, so a second call with `skip_existing=True` goes on from there.

        Args:
            documents: with ids that are new to the index.
            batch_size: texts that the model encodes at a time.
            show_progress: show a progress bar on standard error.
            skip_existing: leave out documents whose id is in the index, instead of raising.

        Returns:
            How many documents were added.

        Raises:
            DuplicateIdError: an id occurs twice or is in the index; documents of earlier segments stay.
            InputError: a document without any text (which some models turn into a zero vector).
        """
        before = len(self.index)
        pending = _Pending(self.index, skip_existing)
        try:
            with _progress(documents, show_progress) as stream:
                while chunk := list(islice(stream, CHUNK_DOCUMENTS)):
                    if new := pending.new(chunk):
                        pending.append(new, self._encode([d.content for d in new], batch_size))
        except KeyboardInterrupt:
            pending.write()
            raise
        pending.write()
        return len(self.index) - before

    def _encode(self, texts: list[str], batch_size: int) -> Float32:
        return _as_float32(self.model.encode_document(texts, batch_size=batch_size, show_progress_bar=False))

    def search(
        self,
        queries: str | Sequence[str],
        k: int = 10,
        *,
        matches_only: bool | str | ThresholdCard = False,
        **parameters: Any,
    ) -> SearchResult:
        """Find the k best documents for each query text.

        Args:
            queries: one text or several.
            k: answers for each query.
            matches_only: keep only what reaches a calibrated threshold, as for `VectorIndex.search`.
            **parameters: as for `VectorIndex.search`, for example `nprobe=64`.

        Raises:
            InputError: a query is not a text, or is one that the model turns into a zero vector; or no query
                threshold is there.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"queries must be texts that are not empty, got {text!r} in row {row}")
        vectors = np.empty((0, self.index.dimension), dtype=np.float32)
        if texts:
            vectors = _as_float32(self.model.encode_query(texts, show_progress_bar=False))  # (Q, dimension)
        return self.index.search(vectors, k, matches_only=matches_only, **parameters)

    def run(
        self,
        queries: Mapping[str, str],
        k: int = 100,
        *,
        matches_only: bool | str | ThresholdCard = False,
        **parameters: Any,
    ) -> dict[str, dict[str, float]]:
        """Answer a query set as a run in TREC's sense: query id -> document id -> score.

        Args:
            queries: query id -> text.
            k: answers for each query.
            matches_only: as for `search`; a query without a match keeps an empty dict.
            **parameters: as for `VectorIndex.search`.
        """
        result = self.search(list(queries.values()), k, matches_only=matches_only, **parameters)
        rows = zip(queries, result.ids, result.scores, result.counts, strict=True)
        return {
            query: dict(zip(ids[:count].tolist(), scores[:count].tolist(), strict=True))
            for query, ids, scores, count in rows
        }


class _Pending:
    """Documents that are encoded and not yet written."""

    def __init__(self, index: VectorIndex, skip_existing: bool) -> None:
        self._index = index
        self._skip_existing = skip_existing
        self._seen: set[str] = set()
        self._documents: list[Document] = []
        self._vectors: list[Float32] = []

    def new(self, chunk: list[Document]) -> list[Document]:
        """The documents of a chunk that are to be encoded; faults are found before that costs time."""
        kept = []
        for document in chunk:
            if document.id in self._seen:
                raise DuplicateIdError(f"id {document.id!r} occurs twice among the documents; give each its own id")
            self._seen.add(document.id)
            if document.id in self._index:
                if self._skip_existing:
                    continue
                raise DuplicateIdError(
                    f"document {document.id!r} is in the index already; leave it out or pass skip_existing=True"
                )
            if not document.content.strip():
                raise InputError(f"document {document.id!r} has neither title nor text; leave it out")
            kept.append(document)
        return kept

    def append(self, documents: list[Document], vectors: Float32) -> None:
        self._documents += documents
        self._vectors.append(vectors)
        if len(self._documents) >= SEGMENT_DOCUMENTS:
            self.write()

    def write(self) -> None:
        if self._documents:
            # a chunk cut off between the two lists has documents without vectors: only whole chunks are written
            vectors = np.concatenate(self._vectors) if self._vectors else np.empty((0, self._index.dimension))
            documents = self._documents[: len(vectors)]
            self._documents, self._vectors = [], []
            if documents:
                self._index.add(vectors, [d.id for d in documents], documents)


def _tie(cls: type[Retriever], model: SentenceTransformer, index: VectorIndex) -> Retriever:
    try:
        return cls(model, index)
    except BaseException:
        index.close()
        raise


def _check_model(model: SentenceTransformer, index: VectorIndex) -> None:
    expected = index.encoder
    if expected is None:
        raise InputError(
            f"index {str(index.path)!r} records no encoder; create it with Retriever.create, "
            "or with VectorIndex.create(encoder=fingerprint(model))"
        )
    found = fingerprint(model)
    if found.digest != expected.digest:
        raise ModelMismatchError(
            f"index {str(index.path)!r} was filled with model {expected.digest} and this model is {found.digest} "
            f"(different: {', '.join(expected.differences(found))}); use the model that filled it "
            "or build the index again"
        )


def _dimension(model: SentenceTransformer) -> int:
    dimension = model.get_embedding_dimension()
    return int(dimension) if dimension else len(model.encode_document("dimension", show_progress_bar=False))


def _as_float32(vectors: Any) -> Float32:
    matrix: Float32 = np.asarray(vectors, dtype=np.float32)
    return matrix


def _record(model: str | Path, index: Path) -> str:
    """The model's folder relative to the index if both lie in one folder, else absolute; a hub's name as it is."""
    if not Path(model).is_dir():
        return str(model)
    folder, index = Path(model).resolve(), index.resolve()
    if folder.is_relative_to(index.parent):
        return Path(os.path.relpath(folder, index)).as_posix()
    return str(folder)


def _recorded(index: VectorIndex) -> str | Path:
    recorded = index.model_name_or_path
    if recorded is None:
        raise InputError(f"index {str(index.path)!r} does not record where its model is; pass model=")
    beside = index.path / recorded
    return beside.resolve() if recorded.startswith("..") else recorded


@contextmanager
def _progress(documents: Iterable[Document], show: bool) -> Iterator[Iterator[Document]]:
    if not show:
        yield iter(documents)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len(documents) if isinstance(documents, Sized) else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield iter(progress.track(documents, total=total, description="Encoding documents"))

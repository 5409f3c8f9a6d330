"""Mined negatives as rows that a trainer reads, and Parquet files of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from nearfar.data.files import named_errors
from nearfar.errors import DataFileError, UnknownNameError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MinedFormat = Literal["n-tuple", "triplet", "pair"]

_PAIR_COLUMNS = ("query", "document", "label")


class MinedQuery(NamedTuple):
    """A query with its positives and negatives.

    Args:
        query: its text.
        positives: the documents that answer it.
        labels: a class number for each positive.
        negatives: the hard documents, hardest first.
        grades: relevance in [0, 1] of each negative; None where they are not graded.
    """

    query: str
    positives: Sequence[str]
    labels: Sequence[int]
    negatives: Sequence[str]
    grades: Sequence[float] | None = None


def check_mined_format(name: str) -> None:
    """Raise `UnknownNameError` unless `name` is one of the formats of `mined_table`."""
    if name not in get_args(MinedFormat):
        raise UnknownNameError("format of mined rows", name, get_args(MinedFormat))


def mined_columns(mined_format: MinedFormat, num_negatives: int) -> list[str]:
    """The text columns of a format, in the order in which losses read them."""
    further = {
        "n-tuple": [f"negative_{number}" for number in range(1, num_negatives + 1)],
        "triplet": ["negative"],
        "pair": [],
    }
    return ["query", "document", *further[mined_format]]


def mined_schema(mined_format: MinedFormat, num_negatives: int, graded: bool) -> pa.Schema:
    """The Arrow schema of a format: text columns, then ``label``."""
    import pyarrow as pa

    texts = [(name, pa.large_string()) for name in mined_columns(mined_format, num_negatives)]
    of_tuples = pa.list_(pa.float32()) if graded else pa.int64()
    return pa.schema([*texts, ("label", pa.float32() if mined_format == "pair" else of_tuples)])


def mined_table(queries: Iterable[MinedQuery], mined_format: MinedFormat, num_negatives: int, graded: bool) -> pa.Table:
    """Rows for `fine_tune` or sentence-transformers' trainer.

    Args:
        queries: with `num_negatives` negatives each; "triplet" and "pair" take queries with fewer as well.
        mined_format: "n-tuple": a row for each positive: ``query, document, negative_1 ...``. "triplet": a row for
            each positive and negative: ``query, document, negative``. "pair": a row for each document of a query,
            ``query, document``, with 1 or the negative's grade (without grades 0) as ``label``.
        num_negatives: of each query.
        graded: the ``label`` of n-tuples and triplets lists the grades of the row's documents, 1 for the positive;
            otherwise it is the class number of the positive.

    Example:
        >>> queries = [MinedQuery("q", ["answer"], [7], ["near", "nearer"], [0.25, 0.5])]
        >>> mined_table(queries, "n-tuple", 2, graded=True).to_pylist()
        [{'query': 'q', 'document': 'answer', 'negative_1': 'near', 'negative_2': 'nearer', 'label': [1.0, 0.25, 0.5]}]
        >>> mined_table(queries, "pair", 2, graded=True).to_pydict()["label"]
        [1.0, 0.25, 0.5]
    """
    import pyarrow as pa

    make = {"n-tuple": _tuples, "triplet": _triplets, "pair": _pairs}[mined_format]
    schema = mined_schema(mined_format, num_negatives, graded)
    columns = list(zip(*[row for query in queries for row in make(query)], strict=True))
    if not columns:
        return schema.empty_table()
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _tuples(mined: MinedQuery) -> Iterable[tuple[Any, ...]]:
    for positive, label in zip(mined.positives, mined.labels, strict=True):
        grades = label if mined.grades is None else [1.0, *mined.grades]
        yield (mined.query, positive, *mined.negatives, grades)


def _triplets(mined: MinedQuery) -> Iterable[tuple[Any, ...]]:
    for positive, label in zip(mined.positives, mined.labels, strict=True):
        for number, negative in enumerate(mined.negatives):
            yield mined.query, positive, negative, label if mined.grades is None else [1.0, mined.grades[number]]


def _pairs(mined: MinedQuery) -> Iterable[tuple[Any, ...]]:
    for positive in mined.positives:
        yield mined.query, positive, 1.0
    for number, negative in enumerate(mined.negatives):
        yield mined.query, negative, 0.0 if mined.grades is None else mined.grades[number]


def load_mined(path: str | Path) -> Dataset:
    """Read mined rows as a ``datasets.Dataset``, which `fine_tune` and sentence-transformers' trainer take as it is.

    Args:
        path: a Parquet file with texts ``query``, ``document`` and, perhaps, negatives, and a ``label`` of numbers.

    Raises:
        DataFileError: the file is missing or no Parquet, has no rows, or other columns.
    """
    import datasets
    import pyarrow.parquet as pq

    path = Path(path)
    with _parquet_errors(path), path.open("rb") as stream:
        table = pq.read_table(stream)
    if not _holds_rows(table.schema):
        found = ", ".join(table.column_names)
        raise DataFileError(
            path, f"columns query, document, negatives and a label of numbers are expected, found: {found}"
        )
    if not table.num_rows:
        raise DataFileError(path, "holds no rows; mine again with a smaller margin or more ranks")
    return datasets.Dataset(table.replace_schema_metadata(None))


def is_mined(path: str | Path) -> bool:
    """Whether a file holds mined rows: negatives, or grades as labels, which plain pairs have not.

    Raises:
        DataFileError: a file that ends in .parquet cannot be read.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if path.suffix.lower() != ".parquet":
        return False
    with _parquet_errors(path), path.open("rb") as stream:
        schema = pq.read_schema(stream)
    return _holds_rows(schema) and (len(schema) > len(_PAIR_COLUMNS) or not _are_classes(schema.field("label").type))


def _holds_rows(schema: pa.Schema) -> bool:
    names = schema.names
    return (
        names[:2] == ["query", "document"]
        and names[-1] == "label"
        and all(name.startswith("negative") for name in names[2:-1])
        and _are_numbers(schema.field("label").type)
    )


def _are_numbers(kind: pa.DataType) -> bool:
    """Numbers, or lists of them."""
    import pyarrow as pa

    each = kind.value_type if pa.types.is_list(kind) else kind
    return bool(pa.types.is_integer(each) or pa.types.is_floating(each))


def _are_classes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        with named_errors(path):
            yield
    except pa.ArrowException as error:
        raise DataFileError(path, f"not a whole Parquet file ({error})") from error

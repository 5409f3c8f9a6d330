from __future__ import annotations

import gzip
import json
import tracemalloc
from types import GeneratorType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearfar.data import Document, RetrievalDataset, iter_corpus, load_beir, write_beir
from nearfar.errors import DataFileError, InputError

CORPUS = b'{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n'
QUERIES = b'{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n'
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n"
TINY = RetrievalDataset(
    {"d1": Document("d1", "one", "T"), "d2": Document("d2", "two")},
    {"q1": "first", "q2": "second"},
    {"q1": {"d1": 1}, "q2": {"d2": 2}},
    "tiny",
)


@pytest.fixture
def folder(tmp_path):
    """Make a folder of three files, any of which a test may replace."""

    def make(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
        path = tmp_path / "tiny"
        (path / "qrels").mkdir(parents=True, exist_ok=True)
        (path / "corpus.jsonl").write_bytes(corpus)
        (path / "queries.jsonl").write_bytes(queries)
        (path / "qrels" / "test.tsv").write_bytes(qrels)
        return path

    return make


def refused(path, line, words, name):
    with pytest.raises(DataFileError, match=words) as caught:
        load_beir(path)
    assert caught.value.line == line
    assert caught.value.path.name == name
    assert "\n" not in str(caught.value)


def test_load(folder):
    assert load_beir(folder()) == TINY


def test_line_ends_marks_blank_lines_and_a_missing_header_change_nothing(folder):
    path = folder(
        b"\xef\xbb\xbf" + CORPUS.replace(b"\n", b"\r\n\r\n"),
        b"\n" + QUERIES.rstrip(),
        b"\xef\xbb\xbf" + QRELS.partition(b"\n")[2].replace(b"\n", b"\r\n"),
    )
    assert load_beir(path) == TINY


def test_integer_ids_become_their_digits(folder):
    path = folder(b'{"_id": 7, "text": "seven"}', b'{"_id": 1, "text": "which?"}', b"1\t7\t1\n")
    assert load_beir(path).qrels == {"1": {"7": 1}}


def test_queries_without_judgement_in_the_split_are_left_out(folder):
    assert list(load_beir(folder(qrels=b"q2\td1\t0\n")).queries) == ["q2"]


def test_gzip(folder):
    path = folder()
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (path / f"{file}.gz").write_bytes(gzip.compress((path / file).read_bytes()))
        (path / file).unlink()
    assert load_beir(path) == TINY
    assert next(iter_corpus(path / "corpus.jsonl.gz")).id == "d1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"_id": "d3", "text": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["d3"]', r"a JSON object is expected, found \['d3'\]"),
        (b'{"id": "d3", "text": "x"}', "'_id' is missing; found: id, text"),
        (b"{}", "'_id' is missing; found: nothing"),
        (b'{"_id": "d3", "title": "x"}', "'text' is missing; found: _id, title"),
        (b'{"_id": "d3", "text": null}', "'text' must be a string, found None"),
        (b'{"_id": "d3", "text": "x", "title": 3}', "'title' must be a string, found 3"),
        (b'{"_id": "d3", "text": "\\ud83d"}', "half a character"),
        (b'{"_id": 3.0, "text": "x"}', "'_id' must be a string or an integer, found 3.0"),
        (b'{"_id": true, "text": "x"}', "'_id' must be a string or an integer, found True"),
        (b'{"_id": null, "text": "x"}', "'_id' must be a string or an integer, found None"),
        (b'{"_id": " ", "text": "x"}', "'_id' is blank"),
        (b'{"_id": "d1", "text": "x"}', "the id 'd1' is used further up"),
        (b'{"_id": "\xff", "text": "x"}', "not UTF-8"),
    ],
)
def test_bad_corpus_lines_are_named(folder, line, words):
    refused(folder(corpus=CORPUS + b"\n" + line + b"\n"), 4, words, "corpus.jsonl")


def test_an_integer_and_its_digits_are_one_id(folder):
    corpus = b'{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}\n'
    refused(folder(corpus=corpus), 2, "the id '1' is used further up", "corpus.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"_id": "q1", "text": "again"}', "the id 'q1' is used further up"),
        (b'{"_id": "q3", "text": " "}', "'text' is blank"),
    ],
)
def test_bad_query_lines_are_named(folder, line, words):
    refused(folder(queries=QUERIES + line), 3, words, "queries.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"q1\td2", "expected 3 columns separated by tabs .* found 2"),
        (b"q1\t0\td2\t1", "found 4; qrels in TREC's format are read by load_trec_qrels"),
        (b"q1 d2 1", "found 1"),
        (b"q1\td2\t1.0", "must be an integer, found '1.0'"),
        (b"q1\td2\thigh", "must be an integer, found 'high'"),
        (b"q1\td2\t1_0", "must be an integer, found '1_0'"),
        (b"q1\td2\tscore", "must be an integer, found 'score'"),  # a header counts as the first line only
        (b"q1\td1\t2", "has grade 2, and 1 further up"),
    ],
)
def test_bad_judgements_are_named(folder, line, words):
    refused(folder(qrels=QRELS + b"\n" + line), 5, words, "test.tsv")


def test_judgements_of_unknown_ids_name_the_first_and_how_many(folder):
    path = folder(qrels=QRELS + b"q1\td8\t1\nq2\td8\t1\nq1\td9\t0\n")
    refused(path, 4, r"document 'd8' is not .* \(2 such ids in this file\)", "test.tsv")
    path = folder(qrels=b"q9\td1\t1\n" + QRELS.partition(b"\n")[2])
    refused(path, 1, r"query 'q9' is not .* \(1 such ids in this file\)", "test.tsv")


@pytest.mark.parametrize("empty", [b"", b"\n \r\n"])
def test_empty_files_are_refused(folder, empty):
    refused(folder(corpus=empty), None, "the file is empty", "corpus.jsonl")
    refused(folder(queries=empty), None, "the file is empty", "queries.jsonl")
    refused(folder(qrels=empty), None, "the qrels are empty", "test.tsv")
    refused(folder(qrels=QRELS.partition(b"\n")[0]), None, "the qrels are empty", "test.tsv")


def test_missing_files_are_named(folder, tmp_path):
    refused(tmp_path / "none", None, "no such folder", "none")
    path = folder()
    with pytest.raises(DataFileError, match=r"dev.tsv: no such file; splits found here: test"):
        load_beir(path, "dev")
    with pytest.raises(InputError, match="not a plain name"):
        load_beir(path, "../test")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder()
        (path / name).unlink()
        refused(path, None, "no such file", name.rpartition("/")[2])
    with pytest.raises(DataFileError, match="no such file"):
        next(iter_corpus(tmp_path / "none.jsonl"))


def test_the_corpus_streams(tmp_path):
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as stream:
        for number in range(4000):
            stream.write(json.dumps({"_id": str(number), "text": "word " * 1000}) + "\n")
        stream.write("broken")
    documents = iter_corpus(path)
    assert isinstance(documents, GeneratorType)
    assert next(documents).id == "0"  # the broken last line is not reached
    tracemalloc.start()
    for _ in range(3999):
        next(documents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10
    with pytest.raises(DataFileError, match="line 4001"):
        next(documents)


def test_empty_documents_are_real(folder):
    path = folder(corpus=CORPUS + b'{"_id": "d3", "title": "", "text": ""}\n')
    assert load_beir(path).corpus["d3"].content == ""


def test_write_keeps_other_splits(tmp_path):
    other = RetrievalDataset(
        {"d2": TINY.corpus["d2"], "d3": Document("d3", "three")}, {"q3": "third"}, {"q3": {"d3": 1}}, "tiny"
    )
    write_beir(TINY, tmp_path / "tiny")
    write_beir(other, tmp_path / "tiny", split="train")
    assert load_beir(tmp_path / "tiny").qrels == TINY.qrels
    assert load_beir(tmp_path / "tiny").queries == TINY.queries
    assert load_beir(tmp_path / "tiny", "train").queries == {"q3": "third"}
    assert list(load_beir(tmp_path / "tiny", "train").corpus) == ["d1", "d2", "d3"]
    changed = RetrievalDataset({"d2": Document("d2", "changed")}, {"q3": "third"}, {"q3": {"d2": 1}}, "tiny")
    with pytest.raises(DataFileError, match="holds another text for id 'd2'"):
        write_beir(changed, tmp_path / "tiny", split="train")


def test_writing_the_only_split_again_replaces_it(tmp_path):
    write_beir(TINY, tmp_path / "tiny")
    smaller = RetrievalDataset({"d1": Document("d1", "new")}, {"q1": "x"}, {"q1": {"d1": 1}}, "tiny")
    write_beir(smaller, tmp_path / "tiny")
    assert load_beir(tmp_path / "tiny") == smaller


@pytest.mark.parametrize("bad", ["", " ", "a\tb", "a\nb", "a\rb"])
def test_ids_that_qrels_cannot_store_are_not_written(tmp_path, bad):
    with pytest.raises(InputError, match="is blank or holds a tab"):
        write_beir(RetrievalDataset({bad: Document(bad, "x")}, {"q": "x"}, {"q": {bad: 1}}, "b"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    corpus = {"d": Document("d", "x")}
    with pytest.raises(InputError, match="query 'q' is blank"):
        write_beir(RetrievalDataset(corpus, {"q": " "}, {"q": {"d": 1}}, "b"), tmp_path / "b")
    with pytest.raises(InputError, match="nothing to write"):
        write_beir(RetrievalDataset(corpus, {"q": "x"}, {}, "b"), tmp_path / "b")
    with pytest.raises(InputError, match="not a plain name"):
        write_beir(RetrievalDataset(corpus, {"q": "x"}, {"q": {"d": 1}}, "b"), tmp_path / "b", split="a/b")
    assert not (tmp_path / "b").exists()


TEXTS = st.text(max_size=20)
NOT_BLANK = TEXTS.filter(str.strip)
IDS = st.text(min_size=1, max_size=8).filter(lambda id_: id_.strip() and not set(id_) & set("\t\r\n"))


@st.composite
def datasets(draw):
    documents = draw(st.dictionaries(IDS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
    queries = draw(st.dictionaries(IDS, NOT_BLANK, min_size=1, max_size=4))
    grades = st.dictionaries(st.sampled_from(sorted(documents)), st.integers(-2, 4), min_size=1)
    qrels = {query: draw(grades) for query in queries}
    return RetrievalDataset({i: Document(i, *d) for i, d in documents.items()}, queries, qrels, "round")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(datasets())
def test_what_is_written_is_read_back(tmp_path, dataset):
    write_beir(dataset, tmp_path / "round")
    assert load_beir(tmp_path / "round") == dataset

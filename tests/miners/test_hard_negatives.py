"""Every filter and strategy against loops over the whole matrix of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nearfar.data import Document
from nearfar.errors import InputError, UnknownNameError
from nearfar.miners import HardNegativeMiner, MiningQueries, NegativeFilters
from nearfar.retrieval import VectorIndex

DIMENSION, SIZE, QUERIES = 8, 120, 15
OFF = NegativeFilters(relative_margin=None)


@pytest.fixture(scope="module", params=["cosine", "inner_product", "l2"])
def world(request, tmp_path_factory):
    """An index, queries with one to three positives each, and all scores."""
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(SIZE, DIMENSION)).astype(np.float32)
    queries = draw.normal(size=(QUERIES, DIMENSION)).astype(np.float32)
    ids = [f"d{i}" for i in range(SIZE)]
    documents = [Document(name, f"text {name}") for name in ids]
    index = VectorIndex.create(tmp_path_factory.mktemp("index") / "i", dimension=DIMENSION, metric=request.param)
    index.add(vectors, ids, documents)
    scores = score(request.param, queries, vectors)
    # positives near the top, so that margins bite, and one far away
    positives = []
    for row in range(QUERIES):
        order = np.argsort(-scores[row])
        positives.append([ids[order[rank]] for rank in draw.choice(25, size=1 + row % 3, replace=False)])
    yield World(index, ids, queries, scores, positives)
    index.close()


class World:
    def __init__(self, index, ids, queries, scores, positives):
        self.index, self.ids, self.queries, self.scores, self.positives = index, ids, queries, scores, positives

    def mine(self, num_negatives=4, *, judge=None, **options):
        texts = [f"query {row}" for row in range(QUERIES)]
        queries = MiningQueries.from_ids(self.index, self.queries, self.positives, texts)
        options.setdefault("filters", OFF)
        options.setdefault("short", "keep")
        return HardNegativeMiner(self.index, num_negatives, judge=judge, **options).mine(queries)

    def candidates(self, row, range_min=0, range_max=50):
        """(id, score) of the ranks, without the positives."""
        order = np.argsort(-self.scores[row])
        left = [(self.ids[i], self.scores[row, i]) for i in order if self.ids[i] not in self.positives[row]]
        return left[range_min:range_max]

    def positive_scores(self, row):
        return [self.scores[row, self.ids.index(name)] for name in self.positives[row]]


def score(metric, queries, documents):
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        documents = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    if metric == "l2":
        return np.array([[-sum((q - d) ** 2) for d in documents.astype(float)] for q in queries.astype(float)])
    return np.array([[float(np.dot(q, d)) for d in documents] for q in queries])


def mined_ids(mined):
    return [[name for name in row if name is not None] for row in mined.ids]


def test_the_top_are_the_best_documents_that_are_no_positives(world):
    mined = world.mine()
    for row in range(QUERIES):
        expected = world.candidates(row)[:4]
        assert mined.ids[row].tolist() == [name for name, _ in expected]
        assert mined.texts[row].tolist() == [f"text {name}" for name, _ in expected]
        np.testing.assert_allclose(mined.scores[row], [s for _, s in expected], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sorted(mined.positive_scores[row]), sorted(world.positive_scores(row)), rtol=1e-4)


BOUNDS = {  # filter -> its value, and the bound that it means
    "absolute_margin": (0.3, lambda reference, everything: reference - 0.3),
    "relative_margin": (0.2, lambda reference, everything: reference - 0.2 * abs(reference)),
    "positive_percentile": (30, lambda reference, everything: np.percentile(everything, 30)),
}


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_filter_lets_through_what_its_bound_allows(world, name, quantile):
    value, bound = BOUNDS[name]
    options = {"relative_margin": None, name: value, "positive_quantile": quantile}
    mined = world.mine(filters=NegativeFilters(**options))
    everything = [s for row in range(QUERIES) for s in world.positive_scores(row)]
    refused = 0
    for row in range(QUERIES):
        reference = np.quantile(world.positive_scores(row), quantile)
        candidates = world.candidates(row)
        allowed = [c for c, s in candidates if s <= bound(reference, everything)]
        refused += len(candidates) - len(allowed)
        assert mined_ids(mined)[row] == allowed[:4]
    assert refused > 0
    assert mined.removed[name] == refused


def test_max_score(world):
    top = float(np.quantile(world.scores, 0.9))
    mined = world.mine(filters=NegativeFilters(relative_margin=None, max_score=top))
    for row in range(QUERIES):
        assert mined_ids(mined)[row] == [c for c, s in world.candidates(row) if s <= top][:4]
    assert mined.removed["max_score"] > 0


def test_min_score_and_a_margin_hold_together(world):
    bottom = float(np.quantile(world.scores, 0.8))
    mined = world.mine(filters=NegativeFilters(absolute_margin=0.1, relative_margin=None, min_score=bottom))
    for row in range(QUERIES):
        top = min(world.positive_scores(row)) - 0.1
        allowed = [c for c, s in world.candidates(row) if bottom <= s <= top]
        assert mined_ids(mined)[row] == allowed[:4]
        assert mined.short[row] == (len(allowed) < 4)
    assert mined.removed["min_score"] > 0


def test_the_margin_is_measured_from_the_hardest_positive(world):
    mined = world.mine(filters=NegativeFilters(absolute_margin=0.0, relative_margin=None))
    for row in range(QUERIES):
        assert all(mined.scores[row, : mined.counts[row]] <= min(world.positive_scores(row)) + 1e-6)


def test_the_default_is_ninety_five_percent_of_the_positive(world):
    miner = HardNegativeMiner(world.index)
    assert miner.filters == NegativeFilters(relative_margin=0.05)
    assert [miner.num_negatives, miner.sampling, miner.short] == [4, "top", "drop"]


def test_ranks_are_cut_at_both_ends(world):
    mined = world.mine(num_negatives=3, range_min=5, range_max=8)
    for row in range(QUERIES):
        assert mined_ids(mined)[row] == [name for name, _ in world.candidates(row, 5, 8)]


def test_random_and_softmax_take_ranks_of_the_range(world):
    for sampling in ("random", "softmax"):
        mined = world.mine(num_negatives=3, sampling=sampling, range_min=2, range_max=9, temperature=4, seed=5)
        for row in range(QUERIES):
            ranks = [name for name, _ in world.candidates(row, 2, 9)]
            chosen = [ranks.index(name) for name in mined_ids(mined)[row]]
            assert chosen == sorted(set(chosen))
            assert len(chosen) == 3
        assert mined_ids(mined) != mined_ids(world.mine(num_negatives=3, range_min=2, range_max=9))
        again = world.mine(num_negatives=3, sampling=sampling, range_min=2, range_max=9, temperature=4, seed=5)
        assert mined_ids(again) == mined_ids(mined)


def test_portions_of_queries_draw_what_the_whole_draws(world):
    whole = world.mine(sampling="softmax", seed=3)
    queries = MiningQueries.from_ids(world.index, world.queries[6:], world.positives[6:])
    miner = HardNegativeMiner(world.index, filters=OFF, sampling="softmax", short="keep", seed=3)
    assert mined_ids(miner.mine(queries, numbers=np.arange(6, QUERIES))) == mined_ids(whole)[6:]


def test_duplicates_of_a_positive_are_left_out_by_their_similarity(world):
    vectors = world.index.vectors(world.ids)
    with_each_other = score(world.index.metric, vectors, vectors)
    least = float(np.quantile(with_each_other, 0.9))
    mined = world.mine(duplicate_similarity=least)
    for row in range(QUERIES):
        rows = [world.ids.index(name) for name in world.positives[row]]
        kept = [c for c, _ in world.candidates(row, 0, SIZE) if with_each_other[rows, world.ids.index(c)].max() < least]
        assert mined_ids(mined)[row] == kept[:4]
    assert mined.removed["duplicate"] > 0


def judged(pairs):
    """A judge of its own mind: a number in [0, 1] from the names in the two texts."""
    return [(7 * int(q.split()[-1]) + 13 * int(d.split("d")[-1])) % 101 / 100 for q, d in pairs]


def test_a_judge_filters_and_grades_and_the_index_ranks(world):
    seen = []

    def judge(pairs):
        seen.extend(pairs)
        return np.array(judged(pairs))

    mined = world.mine(judge=judge, graded=True, filters=NegativeFilters(absolute_margin=0.1, relative_margin=None))
    for row in range(QUERIES):
        opinion = {name: judged([(f"query {row}", f"text {name}")])[0] for name in world.ids}
        bound = min(opinion[name] for name in world.positives[row]) - 0.1
        expected = [c for c, _ in world.candidates(row) if opinion[c] <= bound][:4]
        assert mined_ids(mined)[row] == expected
        np.testing.assert_allclose(mined.grades[row, : len(expected)], [opinion[c] for c in expected], rtol=1e-6)
    assert len(seen) == len(set(seen))


def test_grades_without_a_judge_are_the_share_of_positives_that_score_no_higher(world):
    mined = world.mine(graded=True)
    everything = [s for row in range(QUERIES) for s in world.positive_scores(row)]
    for row in range(QUERIES):
        expected = [sum(p <= s for p in everything) / len(everything) for _, s in world.candidates(row)[:4]]
        np.testing.assert_allclose(mined.grades[row], expected, atol=1e-6)
    assert 0 < mined.grades.mean() < 1
    apart = HardNegativeMiner(world.index, filters=OFF, graded=True)
    queries = MiningQueries.from_ids(world.index, world.queries, world.positives)
    assert (apart.mine(queries, population=np.array([1e6])).grades == 0).all()


def test_short_queries_are_dropped_kept_or_filled_up(world):
    bottom = float(np.quantile(world.scores, 0.85))
    filters = NegativeFilters(relative_margin=0.1, min_score=bottom)
    kept, dropped, filled = (world.mine(filters=filters, short=how) for how in ("keep", "drop", "fill"))
    short = kept.counts < 4
    assert 0 < short.sum() < QUERIES
    for mined in (kept, dropped, filled):
        np.testing.assert_array_equal(mined.short, short)
    assert (dropped.counts == np.where(short, 0, 4)).all()
    assert all(name is None for name in dropped.ids[short].flat)
    for row in np.flatnonzero(filled.counts):
        names = mined_ids(filled)[row]
        assert len(set(names)) == 4
        assert names[: kept.counts[row]] == mined_ids(kept)[row]
        reference = min(world.positive_scores(row))
        for name in names[kept.counts[row] :]:
            assert name not in world.positives[row]
            assert world.scores[row, world.ids.index(name)] <= reference - 0.1 * abs(reference) + 1e-6
    assert filled.counts.sum() > dropped.counts.sum()


def test_positives_that_fill_the_answers_are_looked_past(world):
    positives = [[name for name, _ in world.candidates(row, 0, 90)] for row in range(QUERIES)]
    queries = MiningQueries.from_ids(world.index, world.queries, positives)
    mined = HardNegativeMiner(world.index, filters=OFF, range_max=4).mine(queries)
    for row in range(QUERIES):
        order = [world.ids[i] for i in np.argsort(-world.scores[row])]
        assert mined_ids(mined)[row] == [name for name in order if name not in positives[row]][:4]


class TestTexts:
    """What is known by its text."""

    @pytest.fixture
    def index(self, tmp_path):
        texts = ["Heart attack", "heart  ATTACK", "chest pain", "Chest pain", "angina", "broken bone"]
        vectors = [[1.0, i / 10] for i in range(len(texts))]
        with VectorIndex.create(tmp_path / "texts", dimension=2) as index:
            index.add(np.array(vectors), [f"d{i}" for i in range(len(texts))], documents(texts))
            yield index

    def test_copies_of_the_positive_of_the_query_and_of_one_another_are_left_out(self, index):
        queries = MiningQueries.from_ids(index, [[1, 0]], [["d0"]], ["Angina"])
        mined = HardNegativeMiner(index, 2, filters=OFF).mine(queries)
        assert mined.ids.tolist() == [["d2", "d5"]]
        assert mined.removed == {"positive": 3, "repeated": 1}

    def test_texts_that_are_known_to_answer_are_left_out(self, index):
        vectors = np.array([[1.0, 0.0]], dtype=np.float32)
        queries = MiningQueries(vectors, vectors, [np.array([0])], known_texts=[{"chest pain", "heart attack"}])
        mined = HardNegativeMiner(index, 2, filters=OFF).mine(queries)
        assert mined.ids.tolist() == [["d4", "d5"]]

    def test_a_judge_needs_texts(self, index):
        miner = HardNegativeMiner(index, 2, judge=lambda pairs: [0.5] * len(pairs))
        with pytest.raises(InputError, match="the judge reads texts"):
            miner.mine(MiningQueries.from_ids(index, [[1, 0]], [["d0"]]))

    @pytest.mark.parametrize(
        ("opinion", "message"),
        [(lambda pairs: [0.5], "one finite number for each"), (lambda pairs: [3.0] * len(pairs), "sigmoid")],
    )
    def test_a_judge_that_gives_nonsense(self, index, opinion, message):
        positives = [["d0", "d1"]]
        miner = HardNegativeMiner(index, 1, judge=opinion, graded=True)
        with pytest.raises(InputError, match=message):
            miner.mine(MiningQueries.from_ids(index, [[1, 0]], positives, ["q"]))

    def test_a_judge_needs_documents_in_the_index(self, tmp_path):
        with VectorIndex.create(tmp_path / "bare", dimension=2) as bare:
            bare.add(np.eye(2), ["a", "b"])
            vectors = np.array([[1.0, 0.0]], dtype=np.float32)
            queries = MiningQueries(vectors, vectors, [np.array([0])], ["q"], ["p"])
            with pytest.raises(InputError, match="index documents"):
                HardNegativeMiner(bare, 1, judge=lambda pairs: [0.5] * len(pairs)).mine(queries)


def documents(texts):
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"num_negatives": 2.5}, "num_negatives=2.5"),
        ({"range_min": -1}, "range_min=-1"),
        ({"range_min": 48}, "leaves 2 ranks"),
        ({"sampling": "softmax", "temperature": 0}, "temperature=0"),
        ({"seed": -1}, "seed=-1"),
        ({"duplicate_similarity": math.nan}, "duplicate_similarity"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        HardNegativeMiner(None, **options)


@pytest.mark.parametrize("options", [{"sampling": "tpo"}, {"short": "drp"}])
def test_unknown_names_are_met_with_near_ones(options):
    with pytest.raises(UnknownNameError, match="did you mean"):
        HardNegativeMiner(None, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"absolute_margin": math.inf},
        {"positive_percentile": 101},
        {"positive_quantile": 1.5},
        {"max_score": 0.1, "min_score": 0.2},
    ],
)
def test_filters_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options))):
        NegativeFilters(**options)


def test_an_empty_index_and_a_query_without_positives(tmp_path):
    with VectorIndex.create(tmp_path / "empty", dimension=2) as index:
        vectors = np.array([[1.0, 0.0]], dtype=np.float32)
        queries = MiningQueries(vectors, vectors, [np.array([], dtype=np.int64)])
        with pytest.raises(InputError, match="index is empty"):
            HardNegativeMiner(index).mine(queries)
        index.add(np.eye(2), ["a", "b"])
        with pytest.raises(InputError, match="query 0 has no positive"):
            HardNegativeMiner(index, 1).mine(queries)
        assert HardNegativeMiner(index, 1, filters=OFF).mine(queries).ids.tolist() == [["a"]]


def test_lengths_that_differ():
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(InputError, match="2 vectors, 1 positives"):
        MiningQueries(vectors, vectors, [np.array([0])])
    with pytest.raises(InputError, match="1 positive texts"):
        MiningQueries(vectors, vectors, [np.array([0])] * 2, positive_texts=["one"])

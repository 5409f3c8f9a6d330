from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval import RankingResult
from nearfar.eval.report import worst_queries

RUN = {
    "q1": {"d1": 0.9, "d2": 0.8},
    "q2": {"d1": 0.9, "d3": 0.5, "d2": 0.4},
    "q3": {"d1": 0.7},
}
QRELS = {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}, "q3": {"d2": 1}, "q4": {"d3": 1}}
DOCUMENTS = {"d1": "one", "d2": "two", "d3": "three"}
QUERIES = {"q1": "first", "q2": "second", "q3": "third", "q4": "fourth"}


def ranking(ties: str = "trec") -> RankingResult:
    values = {"R@1": np.array([1.0, 0.0, 0.0, 0.0])}
    return RankingResult(["q1", "q2", "q3", "q4"], values, {"R@1": 0.25}, ["q4"], [], 0.0, 6, 1, ties)


def test_worst_first_and_unreturned_before_deep() -> None:
    worst = worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1")
    assert [example.query_id for example in worst] == ["q3", "q4", "q2", "q1"]
    assert [example.value for example in worst] == [0, 0, 0, 1]


def test_what_an_example_holds() -> None:
    example = worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1", depth=2)[2]
    assert example.text == "second"
    assert [(d.id, d.text, d.score, d.rank, d.relevant) for d in example.returned] == [
        ("d1", "one", 0.9, 1, False),
        ("d3", "three", 0.5, 2, False),
    ]
    assert [(d.id, d.grade, d.rank) for d in example.expected] == [("d2", 2, 3)]
    assert (example.expected_total, example.returned_total) == (1, 3)


def test_a_query_without_answer() -> None:
    example = worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1")[1]
    assert example.returned == []
    assert example.expected[0].rank is None


@pytest.mark.parametrize(("ties", "expected"), [("trec", ["d3", "d2", "d1"]), ("rank", ["d2", "d3", "d1"])])
def test_equal_scores_go_by_the_rule_of_the_evaluation(ties: str, expected: list[str]) -> None:
    # The first two differ by less than float32 can tell.
    run = {"q1": {"d2": 0.5 + 1e-12, "d3": 0.5, "d1": 0.1}}
    result = RankingResult(["q1"], {"R@1": np.array([0.0])}, {"R@1": 0.0}, [], [], 0.0, 3, 1, ties)
    (example,) = worst_queries(result, run, QUERIES, DOCUMENTS, QRELS, "R@1")
    assert [document.id for document in example.returned] == expected


def test_limits() -> None:
    assert worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1", limit=0) == []
    (example,) = worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1", limit=1, depth=0)
    assert example.returned == []
    with pytest.raises(InputError, match="limit is -1"):
        worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@1", limit=-1)


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown metric 'R@2'"):
        worst_queries(ranking(), RUN, QUERIES, DOCUMENTS, QRELS, "R@2")
    with pytest.raises(InputError, match="no text for document 'd1'"):
        worst_queries(ranking(), RUN, QUERIES, {"d2": "two", "d3": "three"}, QRELS, "R@1")
    with pytest.raises(InputError, match="no text for query 'q3'"):
        worst_queries(ranking(), RUN, {}, DOCUMENTS, QRELS, "R@1")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 40))
def test_the_chosen_are_the_lowest(values: list[float], limit: int) -> None:
    ids = [f"q{i}" for i in range(len(values))]
    result = RankingResult(ids, {"m": np.array(values)}, {"m": 0.0}, [], [], 0.0, 0)
    qrels = {query: {"d1": 1} for query in ids}
    texts = {query: query for query in ids}
    worst = worst_queries(result, {}, texts, DOCUMENTS, qrels, "m", limit=limit)
    assert [example.value for example in worst] == sorted(values)[:limit]

"""evaluate_run, evaluate_arrays and recall_curve against pytrec_eval and ir_measures."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

import nearfar.eval.ranking_arrays as arrays_module
from nearfar.errors import DuplicateIdError, InputError, UnknownNameError
from nearfar.eval.ranking import evaluate_run, recall_curve
from nearfar.eval.ranking_arrays import evaluate_arrays

TREC_NAMES = {
    "R@1": "recall_1",
    "R@5": "recall_5",
    "R@100": "recall_100",
    "Success@1": "success_1",
    "Success@5": "success_5",
    "P@5": "P_5",
    "P@10": "P_10",
    "RR": "recip_rank",
    "nDCG": "ndcg",
    "nDCG@10": "ndcg_cut_10",
    "AP": "map",
    "AP@5": "map_cut_5",
    "Rprec": "Rprec",
}
IR_NAMES = ("R@5", "Success@5", "P@5", "RR", "RR@3", "nDCG", "nDCG@10", "AP", "AP@5", "Rprec")

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]


def random_case(seed: int) -> tuple[Run, Qrels]:
    """A run with ties (also such that only float32 sees), grades -1 to 3, unjudged and missed documents."""
    rng = np.random.default_rng(seed)
    documents = [f"d{n}" for n in range(60)]
    run: Run = {}
    qrels: Qrels = {}
    for query in range(8):
        judged = rng.choice(documents, rng.integers(1, 25), replace=False)
        qrels[f"q{query}"] = {str(name): int(rng.integers(-1, 4)) for name in judged}
        # trec_eval never returns when every grade of a query is negative.
        qrels[f"q{query}"][str(judged[0])] = int(rng.integers(0, 4))
        if rng.random() < 0.2:
            continue
        found = rng.choice(documents, rng.integers(1, 40), replace=False)
        levels = rng.choice([3, 10, 1000])
        scores = rng.integers(-levels, levels, len(found)) / levels + rng.choice([0, 1e-10], len(found))
        run[f"q{query}"] = {str(name): float(score) for name, score in zip(found, scores, strict=True)}
    return run or {"q0": {"d1": 1.0}}, qrels


def has_relevant(grades: dict[str, int], level: int) -> bool:
    return max(grades.values()) >= level


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("seed", range(200))
def test_equals_pytrec_eval(seed: int, level: int) -> None:
    run, qrels = random_case(seed)
    if not any(has_relevant(grades, level) for grades in qrels.values()):
        pytest.skip("nothing is relevant in this draw")
    oracle = pytrec_eval.RelevanceEvaluator(qrels, set(TREC_NAMES.values()), relevance_level=level)
    expected = oracle.evaluate(run)
    result = evaluate_run(run, qrels, list(TREC_NAMES), relevance_level=level)

    assert result.query_ids == [name for name, grades in qrels.items() if has_relevant(grades, level)]
    assert result.queries_without_relevant == [n for n in qrels if n not in result.query_ids]
    assert result.missing_queries == [n for n in result.query_ids if n not in run]
    for name, trec_name in TREC_NAMES.items():
        wanted = [expected.get(query, {}).get(trec_name, 0.0) for query in result.query_ids]
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=0, atol=1e-9)
        assert result.mean[name] == pytest.approx(np.mean(wanted), abs=1e-9)


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_equals_ir_measures_with_missing_queries_as_zero(seed: int) -> None:
    run, qrels = random_case(seed)
    qrels = {query: grades for query, grades in qrels.items() if has_relevant(grades, 1)}
    measures = [ir_measures.parse_measure(name) for name in IR_NAMES]
    # RR@3 has no trec_eval measure; ir_measures takes it from another provider with its own tie rule.
    untied = {q: {d: -n for n, d in enumerate(_trec_order(docs))} for q, docs in run.items()}
    expected = ir_measures.calc_aggregate(measures, qrels, untied)
    result = evaluate_run(run, qrels, IR_NAMES)
    for measure, name in zip(measures, IR_NAMES, strict=True):
        assert result.mean[name] == pytest.approx(expected[measure], abs=1e-9), name


def _trec_order(documents: dict[str, float]) -> list[str]:
    return sorted(documents, key=lambda name: (np.float32(documents[name]), name), reverse=True)


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_recall_curve_equals_the_metric(seed: int) -> None:
    run, qrels = random_case(seed)
    ks = [1, 2, 5, 7, 30, 1000]
    wanted = evaluate_run(run, qrels, [f"R@{k}" for k in ks]).mean
    assert recall_curve(run, qrels, ks) == pytest.approx({k: wanted[f"R@{k}"] for k in ks}, abs=1e-12)


@pytest.mark.parametrize("ties", ["trec", "rank", "expected", "pessimistic"])
@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_arrays_equal_the_dict_path(seed: int, ties: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, qrels = random_case(seed)
    number = {f"d{n}": n for n in range(60)}
    padded = {f"d{n}": f"d{n:03}" for n in range(60)}  # so that strings compare as the numbers do
    named_run = {
        query: {padded[name]: score for name, score in sorted(docs.items(), key=lambda item: -item[1])}
        for query, docs in run.items()
    }
    named_qrels = {query: {padded[name]: grade for name, grade in docs.items()} for query, docs in qrels.items()}
    ids = np.full((len(qrels), 45), -1)
    scores = np.full((len(qrels), 45), np.nan)
    for row, query in enumerate(qrels):
        ranking = named_run.get(query, {})
        ids[row, : len(ranking)] = [int(name[1:]) for name in ranking]
        scores[row, : len(ranking)] = list(ranking.values())
    indptr = np.cumsum([0] + [len(docs) for docs in qrels.values()])
    documents = np.array([number[name] for docs in qrels.values() for name in docs])
    grades = np.array([grade for docs in qrels.values() for grade in docs.values()])

    if ties != "rank":  # rows come in any order, and more than one block of them
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(45), (len(qrels), 1)), axis=1)
        order = np.take_along_axis(order, np.argsort(np.take_along_axis(ids, order, 1) < 0, axis=1, kind="stable"), 1)
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        monkeypatch.setattr(arrays_module, "_BLOCK", 45 * 3)
    names = [*TREC_NAMES, "RBP(p=0.7)", "Judged@7", *([] if ties == "expected" else ["Bpref", "ERR@10"])]
    wanted = evaluate_run(named_run, named_qrels, names, ties=ties)
    result = evaluate_arrays(ids, scores, indptr, documents, grades, names, ties=ties, query_ids=list(qrels))
    assert result.query_ids == wanted.query_ids
    assert result.missing_queries == wanted.missing_queries
    assert (result.tie_rate, result.retrieved) == (wanted.tie_rate, wanted.retrieved)
    for name in names:
        np.testing.assert_array_equal(result.per_query[name], wanted.per_query[name])


def test_tie_rules_differ_as_documented() -> None:
    run = {"q": {"d0": 0.5, "d1": 0.5, "d2": 0.5, "d3": 0.1}}
    qrels = {"q": {"d1": 1}}
    trec = evaluate_run(run, qrels, ["RR"])
    assert trec.mean["RR"] == 1 / 2  # d2, d1, d0
    assert evaluate_run(run, qrels, ["RR"], ties="rank").mean["RR"] == 1 / 2  # d0, d1, d2
    assert evaluate_run(run, {"q": {"d2": 1}}, ["RR"]).mean["RR"] == 1
    assert evaluate_run(run, {"q": {"d2": 1}}, ["RR"], ties="rank").mean["RR"] == 1 / 3
    assert (trec.tie_rate, trec.retrieved, trec.ties) == (3 / 4, 4, "trec")


def test_scores_equal_as_float32_are_ties_under_trec() -> None:
    run = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}
    assert evaluate_run(run, {"q": {"b": 1}}, ["RR"]).mean["RR"] == 1.0
    assert evaluate_run(run, {"q": {"b": 1}}, ["RR"], ties="rank").mean["RR"] == 0.5


def test_signed_zero_and_infinite_scores_rank() -> None:
    run = {"q": {"a": math.inf, "b": 0.0, "c": -0.0, "d": -math.inf, "e": 1e300}}
    result = evaluate_run(run, {"q": {"d": 1}}, ["RR"])
    assert result.mean["RR"] == 1 / 5
    assert evaluate_run(run, {"q": {"c": 1}}, ["RR"]).mean["RR"] == 1 / 3
    assert evaluate_run(run, {"q": {"a": 1}}, ["RR"]).mean["RR"] == 1 / 2  # 1e300 is infinite as float32


def test_exponential_gain_by_hand() -> None:
    result = evaluate_run({"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1, "b": 3}}, ["nDCG(gain=exp)@2"])
    assert result.mean["nDCG(gain=exp)@2"] == pytest.approx((1 + 7 / math.log2(3)) / (7 + 1 / math.log2(3)), abs=1e-12)


def test_exponential_gain_refuses_grades_that_overflow() -> None:
    with pytest.raises(InputError, match="grade of 2000"):
        evaluate_run({"q": {"a": 2.0}}, {"q": {"a": 2000}}, ["nDCG(gain=exp)"])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1, 1), min_size=1),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1),
)
def test_metrics_lie_between_zero_and_one_and_ignore_the_order_of_the_run(
    ranking: dict[str, float], grades: dict[str, int]
) -> None:
    qrels = {"q": {**grades, "always": 1}}
    result = evaluate_run({"q": ranking}, qrels, list(TREC_NAMES))
    backwards = evaluate_run({"q": dict(reversed(ranking.items()))}, qrels, list(TREC_NAMES))
    for name, values in result.per_query.items():
        assert values.dtype == np.float64
        assert 0 <= values[0] <= 1 + 1e-12
        assert values[0] == backwards.per_query[name][0]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("recall@10", "R@10"), ("mrr", "RR"), ("MAP@5", "AP@5"), ("ndcg@10", "nDCG@10"), ("Hit@3", "Success@3")],
)
def test_unknown_metric_suggests_the_right_name(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownNameError, match=f"metric '{name}'.*{suggestion}"):
        evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 1}}, [name])


@pytest.mark.parametrize("name", ["R", "R@0", "R@-1", "P@", "Rprec@5", "nDCG(gain=log)@5", "", "RR @10"])
def test_malformed_metric_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError):
        evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 1}}, [name])


@pytest.mark.parametrize(
    ("run", "qrels", "message"),
    [
        ({}, {"q": {"d": 1}}, "run is empty"),
        ({"q": {"d": 1.0}}, {}, "qrels are empty"),
        ({"x": {"d": 1.0}}, {"q": {"d": 1}}, "share no query"),
        ({"q": {}}, {"q": {"d": 1}}, "share no query"),
        ({"q": {"d": math.nan}}, {"q": {"d": 1}}, "'q' has a score that is NaN"),
        ({"q": {"d": "high"}}, {"q": {"d": 1}}, "score of document 'd' is 'high'"),
        ({"q": {"d": None}}, {"q": {"d": 1}}, "'q' has a score that is NaN"),
        ({"q": {"d": 1.0}}, {"q": {"d": "1"}}, "relevance of document 'd' is '1'"),
        ({"q": {"d": 1.0}}, {"q": {"d": 0.5}}, r"relevance of document 'd' is 0\.5"),
        ({"q": {"d": 1.0}}, {"q": {"d": 0}}, "grade 1 or more"),
    ],
)
def test_bad_input_is_named(run: Run, qrels: Qrels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_run(run, qrels)


def test_bad_options_are_refused() -> None:
    run, qrels = {"q": {"a": 0.1, "b": 0.9}}, {"q": {"b": 1}}
    with pytest.raises(UnknownNameError, match="tie rule"):
        evaluate_run(run, qrels, ties="random")
    with pytest.raises(InputError, match="descending score"):
        evaluate_run(run, qrels, ties="rank")
    with pytest.raises(InputError, match="relevance_level"):
        evaluate_run(run, qrels, relevance_level=0)
    with pytest.raises(InputError, match="metrics must be a list"):
        evaluate_run(run, qrels, "R@1")
    with pytest.raises(InputError, match="ks must be"):
        recall_curve(run, qrels, [0])


def test_arrays_are_validated() -> None:
    ids, scores = np.array([[4, 7, 4]]), np.array([[3.0, 2.0, 1.0]])
    one = np.array([1])
    with pytest.raises(DuplicateIdError, match="retrieved twice"):
        evaluate_arrays(ids, scores, np.array([0, 1]), np.array([4]), one)
    with pytest.raises(DuplicateIdError, match="judge a document twice"):
        evaluate_arrays(ids, scores, np.array([0, 2]), np.array([4, 4]), np.array([1, 1]))
    with pytest.raises(InputError, match="same shape"):
        evaluate_arrays(ids, scores[:, :2], np.array([0, 1]), np.array([4]), one)
    with pytest.raises(InputError, match="qrels_indptr"):
        evaluate_arrays(ids, scores, np.array([0, 5]), np.array([4]), one)
    with pytest.raises(InputError, match="must hold integers"):
        evaluate_arrays(ids.astype(float), scores, np.array([0, 1]), np.array([4]), one)
    with pytest.raises(InputError, match="only pad the end"):
        evaluate_arrays(np.array([[-1, 4]]), scores[:, :2], np.array([0, 1]), np.array([4]), one)


def test_ids_near_the_largest_integer_are_exact() -> None:
    big = 2**63 - 1
    ids, scores = np.array([[big - 1, big]]), np.array([[2.0, 1.0]])
    result = evaluate_arrays(ids, scores, np.array([0, 1]), np.array([big]), np.array([1]), ["RR"])
    assert result.mean["RR"] == 0.5

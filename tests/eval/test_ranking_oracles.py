"""Every ranking metric against pytrec_eval, ir_measures and plain loops, on many random runs."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval.ranking import evaluate_run, recall_curve
from nearfar.eval.ranking_arrays import evaluate_arrays

TREC_NAMES = {
    "R@5": "recall_5",
    "R@100": "recall_100",
    "Success@1": "success_1",
    "Success@10": "success_10",
    "P@5": "P_5",
    "RR": "recip_rank",
    "nDCG": "ndcg",
    "nDCG@10": "ndcg_cut_10",
    "AP": "map",
    "AP@10": "map_cut_10",
    "Rprec": "Rprec",
}
# The providers of these order ties in their own ways, so the oracle is given untied scores in trec_eval's order.
IR_NAMES = ("R@5", "Success@5", "P@5", "RR", "RR@3", "nDCG", "nDCG@10", "AP", "AP@5", "Rprec", "Judged", "Judged@7")

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]


def random_case(seed: int) -> tuple[Run, Qrels]:
    """Ties (some only seen in float32), queries missing from the run, grades -1 to 3, unjudged documents."""
    rng = np.random.default_rng(seed)
    documents = [f"d{n}" for n in range(50)]
    run: Run = {"999": {"d1": 1.0}}  # a query that is not judged
    qrels: Qrels = {}
    for query in map(str, range(1, 7)):
        judged = rng.choice(documents, rng.integers(2, 25), replace=False)
        qrels[query] = {str(name): int(rng.integers(-1, 4)) for name in judged}
        # trec_eval never returns when every grade of a query is negative.
        qrels[query][str(judged[0])] = int(rng.integers(0, 4))
        if rng.random() < 0.2:
            continue
        found = rng.choice(documents, rng.integers(1, 40), replace=False)
        levels = rng.choice([3, 10, 1000])
        scores = rng.integers(-levels, levels, len(found)) / levels + rng.choice([0, 1e-10], len(found))
        run[query] = {str(name): float(score) for name, score in zip(found, scores, strict=True)}
    if not any(query in run for query in qrels):
        run["1"] = {"d1": 1.0}
    qrels["1"]["d7"] = 2
    return run, qrels


def in_trec_order(documents: dict[str, float]) -> list[str]:
    return sorted(documents, key=lambda name: (np.float32(documents[name]), name), reverse=True)


def untied(run: Run) -> Run:
    return {query: {name: -float(n) for n, name in enumerate(in_trec_order(docs))} for query, docs in run.items()}


def check_against_oracles(seed: int) -> None:
    run, qrels = random_case(seed)
    for level in (1, 2):
        oracle = pytrec_eval.RelevanceEvaluator(qrels, {*TREC_NAMES.values(), "bpref"}, relevance_level=level)
        expected = oracle.evaluate(run)
        result = evaluate_run(run, qrels, [*TREC_NAMES, "Bpref"], relevance_level=level)
        for name, trec_name in TREC_NAMES.items():
            wanted = [expected.get(query, {}).get(trec_name, 0.0) for query in result.query_ids]
            np.testing.assert_allclose(result.per_query[name], wanted, rtol=0, atol=1e-9, err_msg=name)
        # The documented difference: trec_eval divides in single precision here.
        wanted = [expected.get(query, {}).get("bpref", 0.0) for query in result.query_ids]
        np.testing.assert_allclose(result.per_query["Bpref"], wanted, rtol=0, atol=6e-8)
    relevant = {query: grades for query, grades in qrels.items() if max(grades.values()) >= 1}
    measures = [ir_measures.parse_measure(name) for name in IR_NAMES]
    aggregate = ir_measures.calc_aggregate(measures, relevant, untied(run))
    result = evaluate_run(run, qrels, IR_NAMES)
    for measure, name in zip(measures, IR_NAMES, strict=True):
        if name.startswith("Judged"):
            continue
        assert result.mean[name] == pytest.approx(aggregate[measure], abs=1e-9), name
    per_query = {(m.query_id, str(m.measure)): m.value for m in ir_measures.iter_calc(measures, relevant, untied(run))}
    for name in ("Judged", "Judged@7"):
        for query, value in zip(result.query_ids, result.per_query[name], strict=True):
            assert value == pytest.approx(per_query.get((query, name), 0.0), abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_equals_pytrec_eval_and_ir_measures(seed: int) -> None:
    check_against_oracles(seed)


@pytest.mark.slow
def test_equals_pytrec_eval_and_ir_measures_on_a_thousand_runs() -> None:
    for seed in range(40, 1040):
        check_against_oracles(seed)


@pytest.mark.parametrize("seed", range(3))
def test_err_and_exponential_gain_equal_gdeval(seed: int) -> None:
    if not shutil.which("perl"):
        pytest.skip("gdeval is a Perl script")
    run, qrels = random_case(seed)
    qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) >= 1}
    err, ndcg = ir_measures.parse_measure("ERR@10"), ir_measures.parse_measure("nDCG(dcg='exp-log2')@10")
    expected = {(m.query_id, m.measure): m.value for m in ir_measures.iter_calc([err, ndcg], qrels, untied(run))}
    result = evaluate_run(run, qrels, ["ERR@10", "nDCG(gain=exp)@10"])
    for name, measure in (("ERR@10", err), ("nDCG(gain=exp)@10", ndcg)):
        wanted = [expected.get((query, measure), 0.0) for query in result.query_ids]
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=0, atol=1e-5)  # five digits are printed


def naive(order: list[str], grades: dict[str, int], level: int) -> dict[str, float]:
    """Bpref, ERR, RBP and geometric mean by their definitions, for one ranking."""
    relevant = {name for name, grade in grades.items() if grade >= level}
    nonrelevant = {name for name, grade in grades.items() if 0 <= grade < level}
    bpref, above = 0.0, 0
    err, reaches, rbp = 0.0, 1.0, 0.0
    for rank, name in enumerate(order, start=1):
        grade = max(grades.get(name, 0), 0)
        if name in relevant:
            limit = min(len(nonrelevant), len(relevant))
            bpref += 1.0 - (min(above, len(relevant)) / limit if above else 0.0)
            rbp += 0.3 * 0.7 ** (rank - 1)
        above += name in nonrelevant
        if rank <= 10:
            stop = (2**grade - 1) / 2**3
            err += reaches * stop / rank
            reaches *= 1 - stop
    return {"Bpref": bpref / len(relevant), "ERR(max_rel=3)@10": err, "RBP(p=0.7)": rbp}


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_bpref_err_and_rbp_equal_plain_loops(seed: int, level: int) -> None:
    run, qrels = random_case(seed)
    result = evaluate_run(run, qrels, ["Bpref", "ERR(max_rel=3)@10", "RBP(p=0.7)"], relevance_level=level)
    for row, query in enumerate(result.query_ids):
        wanted = naive(in_trec_order(run.get(query, {})), qrels[query], level)
        for name, value in wanted.items():
            assert result.per_query[name][row] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_geometric_mean_is_gm_map(seed: int) -> None:
    run, qrels = random_case(seed)
    result = evaluate_run(run, qrels, ["AP"])
    answered = {query: qrels[query] for query in result.query_ids if query in run}
    expected = pytrec_eval.RelevanceEvaluator(answered, {"gm_map"}).evaluate(run)
    logs = [values["gm_map"] for values in expected.values()]  # trec_eval sums the logarithms of AP
    missing = [math.log(1e-5)] * len(result.missing_queries)
    assert result.geometric_mean("AP") == pytest.approx(math.exp(np.mean(logs + missing)), abs=1e-9)
    with pytest.raises(UnknownNameError, match="'RR'"):
        result.geometric_mean("RR")


def all_orders(documents: dict[str, float]) -> list[list[str]]:
    """Every ranking in which only documents of equal score change places."""
    groups = [[n for n, s in documents.items() if s == score] for score in sorted(set(documents.values()))[::-1]]
    return [list(itertools.chain(*parts)) for parts in itertools.product(*map(itertools.permutations, groups))]


TIED = ["R@3", "P@2", "Success@1", "Success@3", "RR", "RR@3", "nDCG", "nDCG@3", "nDCG(gain=exp)@4", "AP", "AP@3"]
TIED += ["Rprec", "RBP(p=0.6)", "RBP(p=0.6)@3", "Judged@3", "Judged"]


@pytest.mark.parametrize(("ties", "summary"), [("expected", np.mean), ("pessimistic", np.min)])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("seed", range(25))
def test_tie_rules_equal_all_orders(seed: int, level: int, ties: str, summary: Callable[[list[float]], float]) -> None:
    rng = np.random.default_rng(seed)
    run = {"q": {f"d{n}": float(rng.integers(0, 3)) for n in range(rng.integers(1, 7))}}
    qrels = {"q": {f"d{n}": int(rng.integers(-1, 4)) for n in range(0, 9, int(rng.integers(1, 3)))}}
    qrels["q"][f"d{rng.integers(0, 7)}"] = 3
    names = TIED if ties == "expected" else [*TIED, "Bpref", "ERR@4"]
    result = evaluate_run(run, qrels, names, ties=ties, relevance_level=level)
    orders = all_orders(run["q"])
    each = [evaluate_run({"q": {n: -i for i, n in enumerate(o)}}, qrels, names, relevance_level=level) for o in orders]
    for name in names:
        assert result.mean[name] == pytest.approx(summary([one.mean[name] for one in each]), abs=1e-12), name
    curve = recall_curve(run, qrels, [1, 3], ties=ties, relevance_level=level)
    assert curve[3] == pytest.approx(result.mean["R@3"], abs=1e-12)


def test_expected_refuses_what_has_no_closed_form() -> None:
    for name in ("Bpref", "ERR@10"):
        with pytest.raises(InputError, match=f"{name} has no closed form"):
            evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 1}}, [name], ties="expected")


def test_documented_difference_queries_that_the_run_leaves_out() -> None:
    run, qrels = {"1": {"a": 1.0}}, {"1": {"a": 1}, "2": {"b": 1}}
    pytrec = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert list(pytrec) == ["1"]  # a mean over what is there would be 1
    measure = ir_measures.parse_measure("RR")
    result = evaluate_run(run, qrels, ["RR"])
    assert result.mean["RR"] == ir_measures.calc_aggregate([measure], qrels, run)[measure] == 0.5
    assert result.missing_queries == ["2"]


def test_documented_difference_queries_without_a_relevant_document() -> None:
    run, qrels = {"1": {"a": 1.0}, "2": {"b": 1.0}}, {"1": {"a": 1}, "2": {"b": 0}}
    measure = ir_measures.parse_measure("RR")
    assert ir_measures.calc_aggregate([measure], qrels, run)[measure] == 0.5  # counts it as a failure
    result = evaluate_run(run, qrels, ["RR"])
    assert (result.mean["RR"], result.queries_without_relevant) == (1.0, ["2"])


def test_self_matches_go_by_id_not_by_place() -> None:
    run = {"a": {"b": 3.0, "a": 2.0, "c": 1.0}, "b": {"c": 2.0, "a": 1.0}}
    qrels = {"a": {"a": 1, "b": 1, "c": 1}, "b": {"a": 1}, "c": {"c": 1}}
    result = evaluate_run(run, qrels, ["RR", "R@1", "nDCG"], drop_self=True)
    clean_run = {"a": {"b": 3.0, "c": 1.0}, "b": {"c": 2.0, "a": 1.0}}
    wanted = evaluate_run(clean_run, {"a": {"b": 1, "c": 1}, "b": {"a": 1}}, ["RR", "R@1", "nDCG"])
    assert result.mean == wanted.mean
    assert result.queries_without_relevant == ["c"]
    assert list(run["a"]) == ["b", "a", "c"]  # the caller's run is left as it was
    assert recall_curve(run, qrels, [1], drop_self=True) == recall_curve(
        clean_run, {"a": {"b": 1, "c": 1}, "b": {"a": 1}}, [1]
    )

    ids = np.array([[1, 0, 2], [2, 0, -1], [-1, -1, -1]])
    scores = np.array([[3.0, 2.0, 1.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    indptr, documents, grades = np.array([0, 3, 4, 5]), np.array([2, 0, 1, 0, 2]), np.ones(5, dtype=int)
    names = ["RR", "R@1", "nDCG"]
    arrays = evaluate_arrays(
        ids, scores, indptr, documents, grades, names, self_ids=np.arange(3), query_ids=["a", "b", "c"]
    )
    assert arrays.mean == result.mean
    assert (arrays.query_ids, arrays.retrieved) == (result.query_ids, 4)
    with pytest.raises(InputError, match="self_ids"):
        evaluate_arrays(ids, scores, indptr, documents, grades, self_ids=np.arange(2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RBP(p=1)", "persistence p"),
        ("RBP(p=0)", "persistence p"),
        ("ERR(max_rel=0)", "max_rel"),
        ("ERR(max_rel=2.5)", "max_rel"),
        ("RBP(rel=1)", "unknown metric"),
        ("AP(p=0.5)", "unknown metric"),
        ("Bpref@5", "unknown metric"),
    ],
)
def test_parameters_are_checked(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 1}}, [name])


def test_err_names_the_scale_that_the_grades_need() -> None:
    with pytest.raises(InputError, match=r"grade 7.*ERR\(max_rel=7\)@5"):
        evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 7}}, ["ERR@5"])


def test_arrays_with_ids_too_large_to_join_with_rows() -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(30, 20, replace=False) for _ in range(50)])
    scores = rng.integers(0, 5, ids.shape).astype(float)
    documents = np.stack([rng.choice(30, 6, replace=False) for _ in range(50)])
    indptr, grades = np.arange(0, 301, 6), rng.integers(0, 3, 300)
    small = evaluate_arrays(ids, scores, indptr, documents.ravel(), grades)
    shift = 2**63 - 100
    large = evaluate_arrays(ids + shift, scores, indptr, documents.ravel() + shift, grades)
    assert small.mean == large.mean
    assert small.tie_rate == large.tie_rate > 0

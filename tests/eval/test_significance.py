"""compare_runs as a whole: agreement with scipy, bookkeeping, options, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval import Comparison, RankingResult, benjamini_hochberg, compare_runs, evaluate_run, holm


def result(query_ids: list[str] | None = None, **per_query: np.ndarray) -> RankingResult:
    count = len(next(iter(per_query.values())))
    ids = query_ids or [f"q{i}" for i in range(count)]
    values = {name.replace("_", "@"): np.asarray(v, dtype=float) for name, v in per_query.items()}
    return RankingResult(ids, values, {name: float(v.mean()) for name, v in values.items()}, [], [], 0.0, count)


def three_runs(queries: int = 150, seed: int = 0) -> dict[str, RankingResult]:
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=queries)
    runs = {}
    for name, shift in (("bm25", 0.0), ("dense", 0.1), ("fused", 0.9)):
        ranks = 1 + np.floor(np.exp(1.2 * (ease - shift + rng.normal(size=queries))))
        runs[name] = result(RR=1 / ranks, R_1=ranks == 1)
    return runs


def test_every_pair_and_metric_has_scipys_numbers() -> None:
    runs = three_runs()
    comparison = compare_runs(runs, permutations=2000)
    assert [(r.metric, r.run, r.baseline) for r in comparison.rows] == [
        (metric, run, base)
        for run, base in (("dense", "bm25"), ("fused", "bm25"), ("fused", "dense"))
        for metric in ("RR", "R@1")
    ]
    for row in comparison.rows:
        a, b = runs[row.run].per_query[row.metric], runs[row.baseline].per_query[row.metric]
        assert (row.mean, row.baseline_mean) == pytest.approx((a.mean(), b.mean()))
        assert row.difference == pytest.approx(a.mean() - b.mean())
        assert row.p_t == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)
        flips = scipy.stats.permutation_test(
            (a - b,), lambda d, axis: d.mean(axis=axis), permutation_type="samples", vectorized=True,
            n_resamples=9999, rng=np.random.default_rng(1),
        )  # fmt: skip
        assert row.p_randomisation == pytest.approx(flips.pvalue, abs=0.05)
        assert row.effect_size == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
        low, high = scipy.stats.bootstrap((a - b,), np.mean, rng=np.random.default_rng(1)).confidence_interval
        assert (row.low, row.high) == pytest.approx((low, high), abs=0.08 * (high - low))
        assert row.queries == row.units == 150
    assert [r.p_holm for r in comparison.rows] == holm([r.p_randomisation for r in comparison.rows]).tolist()
    assert [r.p_bh for r in comparison.rows] == benjamini_hochberg(
        [r.p_randomisation for r in comparison.rows]
    ).tolist()
    assert [r.p_value for r in comparison.rows] == [r.p_holm for r in comparison.rows]


def test_wins_and_losses_are_named_largest_first() -> None:
    old = result(RR=np.array([0.5, 1.0, 0.2, 0.1, 1 / 3]))
    new = result(RR=np.array([1.0, 0.1, 0.9, 0.1, 1 / 3 + 1e-16]))
    (row,) = compare_runs({"old": old, "new": new}).rows
    assert (row.wins, row.losses, row.ties) == (["q2", "q0"], ["q1"], 2)
    assert row.win_share == 2 / 3


def test_runs_are_matched_by_query_id_and_not_by_position() -> None:
    runs = three_runs()
    order = np.random.default_rng(0).permutation(150)
    old = runs["fused"]
    shuffled = replace(
        old, query_ids=[old.query_ids[i] for i in order], per_query={n: v[order] for n, v in old.per_query.items()}
    )
    assert compare_runs({**runs, "fused": shuffled}).rows == compare_runs(runs).rows


def test_a_baseline_meets_each_other_run_once() -> None:
    comparison = compare_runs(three_runs(), baseline="dense", metrics=["RR"], permutations=500)
    assert [(r.run, r.baseline) for r in comparison.rows] == [("bm25", "dense"), ("fused", "dense")]
    forth, back = compare_runs(three_runs(), metrics=["RR"], permutations=500).rows[0], comparison.rows[0]
    assert back.difference == -forth.difference
    assert back.p_randomisation == forth.p_randomisation
    assert (back.wins, back.losses) == (forth.losses, forth.wins)


def test_the_seed_decides_and_other_metrics_do_not() -> None:
    runs = three_runs()
    first = compare_runs(runs, permutations=500, correction=None)
    assert compare_runs(runs, permutations=500, correction=None) == first
    assert compare_runs(runs, permutations=500, correction=None, seed=1) != first
    alone = compare_runs(runs, permutations=500, correction=None, metrics=["R@1"])
    for row, same in zip(alone.rows, (r for r in first.rows if r.metric == "R@1"), strict=True):
        assert row.p_randomisation == same.p_randomisation
        assert (row.low, row.high) == pytest.approx((same.low, same.high), abs=1e-12)


def test_the_chosen_test_and_correction_decide() -> None:
    runs = three_runs()
    for test in ("randomisation", "mid-p", "t"):
        raw = compare_runs(runs, test=test, correction=None, permutations=500).rows
        p = [{"randomisation": r.p_randomisation, "mid-p": r.p_mid, "t": r.p_t}[test] for r in raw]
        assert [r.p_value for r in raw] == p
        adjusted = compare_runs(runs, test=test, correction="bh", permutations=500).rows
        assert [r.p_value for r in adjusted] == benjamini_hochberg(p).tolist()
        assert [r.significant for r in adjusted] == [r.p_bh <= 0.05 for r in adjusted]


def test_groups_are_compared_as_if_alone() -> None:
    runs = three_runs()
    language = {f"q{i}": "de" if i % 3 else "fr" for i in range(150)} | {"never scored": "it"}
    comparison = compare_runs(runs, baseline="bm25", metrics=["RR"], groups=language, permutations=500)
    assert [(r.group, r.run) for r in comparison.group_rows] == [
        ("fr", "dense"), ("fr", "fused"), ("de", "dense"), ("de", "fused"),
    ]  # fmt: skip
    assert [r.group for r in comparison.rows] == [None, None]
    some = [i for i in range(150) if i % 3]
    part = {n: result([f"q{i}" for i in some], RR=r.per_query["RR"][some]) for n, r in runs.items()}
    alone = compare_runs(part, baseline="bm25", permutations=500, correction=None).rows
    for row, same in zip(comparison.group_rows[2:], alone, strict=True):
        assert (row.difference, row.low, row.high) == pytest.approx((same.difference, same.low, same.high))
        assert row.p_randomisation == same.p_randomisation
    raw = [r.p_randomisation for r in comparison.group_rows]
    assert [r.p_holm for r in comparison.group_rows] == holm(raw).tolist()


def test_a_group_of_one_query_shows_nothing() -> None:
    runs = {name: three_runs()[name] for name in ("bm25", "fused")}
    groups = {f"q{i}": "odd" if i == 7 else "rest" for i in range(150)}
    row = next(r for r in compare_runs(runs, groups=groups, permutations=500).group_rows if r.group == "odd")
    assert (row.queries, row.p_randomisation, row.p_t, row.low, row.effect_size) == (1, 1.0, None, None, None)
    assert not row.significant


def test_copies_of_a_query_add_no_evidence_when_clustered() -> None:
    single = three_runs(40)
    copied = {
        name: result([f"q{i}-{c}" for i in range(40) for c in range(5)], RR=np.repeat(r.per_query["RR"], 5))
        for name, r in single.items()
    }
    clusters = {f"q{i}-{c}": f"q{i}" for i in range(40) for c in range(5)}
    wanted = compare_runs(single, metrics=["RR"], permutations=1000).rows
    found = compare_runs(copied, clusters=clusters, permutations=1000).rows
    naive = compare_runs(copied, permutations=1000).rows
    for row, same, wrong in zip(found, wanted, naive, strict=True):
        assert row.p_randomisation == same.p_randomisation
        assert (row.p_t, row.low, row.high) == pytest.approx((same.p_t, same.low, same.high), rel=1e-9)
        assert (row.units, row.queries) == (40, 200)
        assert wrong.high - wrong.low < 0.6 * (row.high - row.low)


def test_runs_that_agree_everywhere() -> None:
    same = result(RR=np.array([1.0, 0.5, 0.25]))
    (row,) = compare_runs({"a": same, "b": same}).rows
    assert (row.difference, row.low, row.high, row.p_randomisation, row.p_t) == (0, 0, 0, 1, 1)
    assert (row.effect_size, row.win_share, row.ties, row.significant) == (None, None, 3, False)
    assert "score the same" in compare_runs({"a": same, "b": same}).verdict()[0]


def test_verdicts_say_what_the_numbers_say() -> None:
    runs = three_runs()
    comparison = compare_runs(runs, baseline="bm25", metrics=["RR"], permutations=2000)
    weak, strong = comparison.verdict()
    assert "no clear difference between dense and bm25" in weak
    assert "four times in five" in weak
    assert strong.startswith("RR: fused is better than bm25")
    assert "95 % interval" in strong
    assert "Holm's correction for 2 tests" in strong
    backwards = compare_runs(runs, baseline="fused", metrics=["RR"], permutations=2000).verdict()[0]
    assert "bm25 is worse than fused" in backwards


def test_too_few_queries_are_said_to_be_too_few() -> None:
    runs = {"old": result(RR=np.zeros(4)), "new": result(RR=np.ones(4))}
    assert "cannot fall below 0.12" in compare_runs(runs).verdict()[0]


def test_table_and_json_hold_every_row() -> None:
    groups = {f"q{i}": "even" if i % 2 == 0 else "odd" for i in range(150)}
    comparison = compare_runs(three_runs(), groups=groups, permutations=500)
    lines = comparison.table().splitlines()
    assert len(lines) == 2 + 6 + 12
    at = lines[0].index("group")
    assert [line[at : at + 4].strip() for line in lines[2:]] == ["all"] * 6 + ["even"] * 6 + ["odd"] * 6
    content = json.loads(comparison.to_json())
    assert len(content["rows"]) == 6
    assert len(content["group_rows"]) == 12
    assert content["rows"][0]["wins"] == comparison.rows[0].wins
    assert content["verdict"] == comparison.verdict()
    single = compare_runs({"a": result(RR=np.array([1.0])), "b": result(RR=np.array([0.5]))})
    assert json.loads(single.to_json())["rows"][0]["low"] is None
    assert isinstance(single, Comparison)
    assert single.table()


def test_runs_from_evaluate_run() -> None:
    rng = np.random.default_rng(0)
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(30)}
    runs = {
        name: {f"q{i}": {f"d{j}": float(rng.random() + bonus * (i == j)) for j in range(30)} for i in range(30)}
        for name, bonus in (("weak", 0.1), ("strong", 0.9))
    }
    comparison = compare_runs({name: evaluate_run(run, qrels) for name, run in runs.items()}, permutations=1000)
    assert {row.metric for row in comparison.rows} == set(evaluate_run(runs["weak"], qrels).mean)
    assert all(row.significant and row.difference > 0 for row in comparison.rows if row.metric == "RR")


A = result(RR=np.array([1.0, 0.5]))


@pytest.mark.parametrize(
    ("runs", "options", "error", "words"),
    [
        ({"a": A}, {}, InputError, "at least two runs"),
        ({"a": A, "b": A}, {"baseline": "c"}, UnknownNameError, "baseline run 'c'"),
        ({"a": A, "b": A}, {"metrics": ["RX"]}, UnknownNameError, "RX"),
        ({"a": A, "b": A}, {"metrics": "RR"}, InputError, "list of names"),
        ({"a": A, "b": A}, {"metrics": []}, InputError, "list of names"),
        ({"a": A, "b": A}, {"test": "z"}, UnknownNameError, "test 'z'"),
        ({"a": A, "b": A}, {"correction": "bonferroni"}, UnknownNameError, "correction"),
        ({"a": A, "b": A}, {"permutations": 10}, InputError, "permutations is 10"),
        ({"a": A, "b": A}, {"confidence": 95}, InputError, "confidence is 95"),
        ({"a": A, "b": A}, {"seed": -1}, InputError, "seed is -1"),
        ({"a": A, "b": A}, {"groups": {"q0": "x"}}, InputError, "no group, such as 'q1'"),
        ({"a": A, "b": A}, {"clusters": {"q0": "x"}}, InputError, "no cluster, such as 'q1'"),
        ({"a": A, "b": A}, {"clusters": {"q0": "x", "q1": "x"}}, InputError, "at least two clusters"),
        ({"a": A, "b": result(["q0", "q9"], RR=A.per_query["RR"])}, {}, InputError, "different queries: 2"),
        ({"a": A, "b": result(AP=A.per_query["RR"])}, {}, InputError, "no metric in common"),
        ({"a": A, "b": result(RR=np.array([1.0, np.nan]))}, {}, InputError, "RR of query 'q1' is not a finite"),
        ({"a": A, "b": replace(A, relevance_level=2)}, {}, InputError, "relevance_level=1"),
        ({"a": A, "b": replace(A, ties="rank")}, {}, InputError, "ties='trec'"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, options, error, words) -> None:
    with pytest.raises(error) as caught:
        compare_runs(runs, **options)
    assert words in str(caught.value)

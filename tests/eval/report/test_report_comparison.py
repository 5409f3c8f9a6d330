from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval import RankingResult, ScoreHistogram, calibrate_no_answer, compare_runs
from nearfar.eval.report import FrontierPoint, ModelSection, Report, library_versions
from nearfar.eval.report.comparison import compared, comparisons, contrast, mean_interval, overlap, verdict
from tests.eval.report.report_samples import make_card, make_histogram, make_opis, make_ranking, make_section


def section(name: str, ranks: list[int], **more: object) -> ModelSection:
    return ModelSection(name, make_ranking(np.array(ranks)), **more)  # type: ignore[arg-type]


def two(before: list[int], after: list[int], **more: object) -> Report:
    return Report("t", "d", [section("old", before, **more), section("new", after, **more)], "R@1")


def test_numbers_are_those_of_compare_runs() -> None:
    rng = np.random.default_rng(0)
    ranks = [list(rng.integers(1, top, 200)) for top in (20, 12, 16)]
    report = Report("t", "d", [section(name, of) for name, of in zip("abc", ranks, strict=True)], "RR@10")
    results = {model.name: model.ranking for model in report.models}
    expected = compare_runs(results, baseline="a")
    assert comparisons(report) == expected.rows
    assert [(row.run, row.metric) for row in expected.rows] == [(r, m) for r in "bc" for m in ("R@1", "R@10", "RR@10")]
    assert compared(report, "a", "c", "R@10") == expected.rows[4]


def test_a_comparison_turned_round_says_the_same() -> None:
    rng = np.random.default_rng(1)
    ranks = [list(rng.integers(1, 20, 60)) for _ in range(3)]
    report = Report("t", "d", [section(name, of) for name, of in zip("abc", ranks, strict=True)], "RR@10")
    there, back = compared(report, "a", "b", "RR@10"), compared(report, "b", "a", "RR@10")
    assert there is not None
    assert back is not None
    assert there.low is not None
    assert (back.run, back.baseline, back.difference) == ("a", "b", -there.difference)
    assert (back.high, back.wins, back.p_value) == (-there.low, there.losses, there.p_value)
    direct = compare_runs({m.name: m.ranking for m in report.models[:2]}, baseline="b", metrics=["RR@10"]).rows[0]
    assert back.effect_size == pytest.approx(direct.effect_size)
    assert (back.wins, back.losses, back.ties) == (direct.wins, direct.losses, direct.ties)
    assert compared(report, "b", "c", "RR@10") is None  # neither is the report's first


def test_queries_are_paired_by_id_not_by_place() -> None:
    ranks = np.arange(1, 41)
    ids = [f"q{i}" for i in range(40)]
    shuffled = np.random.default_rng(0).permutation(40)
    first = ModelSection("a", make_ranking(ranks, ids))
    second = ModelSection("b", make_ranking(ranks[shuffled], [ids[i] for i in shuffled]))
    change = compared(Report("t", "d", [first, second], "R@1"), "a", "b", "RR@10")
    assert change is not None
    assert (change.wins, change.losses, change.ties) == ([], [], 40)


def test_clusters_widen_what_the_page_says() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(1, 12, 60).repeat(4)
    after = (rng.integers(1, 12, 60) - 2).clip(1).repeat(4)
    alone = two(list(before), list(after))
    clustered = replace(alone, clusters={f"q{i}": f"c{i // 4}" for i in range(240)})
    free, tied = compared(alone, "old", "new", "RR@10"), compared(clustered, "old", "new", "RR@10")
    assert free is not None
    assert tied is not None
    assert (tied.units, free.units) == (60, 240)
    assert tied.high - tied.low > 1.5 * (free.high - free.low)  # type: ignore[operator]
    assert "240 queries in 60 clusters" in verdict(clustered).headline
    with pytest.raises(InputError, match="query 'q0' has no cluster"):
        replace(alone, clusters={})


def test_the_interval_of_a_single_mean_covers_it() -> None:
    """Against the normal approximation, which is good for 2,000 queries."""
    ranks = np.random.default_rng(0).integers(1, 12, 2000)
    report = Report("t", "d", [ModelSection("a", make_ranking(ranks))], "R@1")
    values = report.models[0].ranking.per_query["RR@10"]
    interval = mean_interval(report, report.models[0], "RR@10")
    normal = statistics.NormalDist(values.mean(), values.std(ddof=1) / 2000**0.5)
    assert interval == pytest.approx((normal.inv_cdf(0.025), normal.inv_cdf(0.975)), abs=1e-3)
    lone = Report("t", "d", [section("a", [1])], "R@1")
    assert mean_interval(lone, lone.models[0], "R@1") is None


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ([2] * 40, [1] * 40, "rose from 0.000 to 1.000"),
        ([1] * 40, [2] * 40, "fell from 1.000 to 0.000"),
        ([1, 2] * 20, [1, 2] * 20, "stayed at 0.500"),
        ([1, 2] * 20, [2, 1] * 19 + [1, 1], "did not clearly change: from 0.500 to 0.525"),
    ],
)
def test_headline(before: list[int], after: list[int], word: str) -> None:
    assert verdict(two(before, after)).headline.startswith(f"R@1 on 40 queries of d {word}")


def test_headline_of_one_model() -> None:
    told = verdict(Report("t", "d", [section("only", [1, 2, 1, 1])], "R@1"))
    assert told.headline.startswith("R@1 on 4 queries of d is 0.750; 95\u00a0% interval ")
    assert told.points == []


def test_the_best_of_three_is_held_against_the_first() -> None:
    models = [section("a", [2] * 40), section("b", [1] * 40), section("c", [1, 2] * 20)]
    best, against = contrast(Report("t", "d", models, "R@1"))
    assert against is not None
    assert (best.name, against.name) == ("b", "a")
    report = Report("t", "d", [models[1], models[0], models[2]], "R@1")
    best, against = contrast(report)
    assert against is not None
    assert (best.name, against.name) == ("b", "c")
    assert "highest with “b”: 1.000, against 0.500 with “c”" in verdict(report).headline


def test_points_name_missing_queries_and_ties() -> None:
    report = two([1] * 40, [1] * 40)
    spoilt = replace(report.models[1].ranking, missing_queries=["q1", "q2"], tie_rate=0.25)
    models = [report.models[0], replace(report.models[1], ranking=spoilt)]
    points = " ".join(verdict(replace(report, models=models)).points)
    assert "“new” returned nothing for 2 queries" in points
    assert "25\u00a0% of the documents" in points


def test_points_tell_threshold_and_overlap() -> None:
    better = replace(make_opis(), corrected=0.0)
    models = [
        section("old", [1] * 40, opis=make_opis(), histogram=make_histogram(0.4)),
        section("new", [1] * 40, opis=better, histogram=make_histogram(0.9)),
    ]
    points = verdict(Report("t", "d", models, "R@1")).points
    assert any("more alike" in point and "nothing beyond chance" in point for point in points)
    assert any(point.startswith("The overlap") for point in points)
    points = verdict(Report("t", "d", models[::-1], "R@1")).points
    assert any("less alike" in point for point in points)


def test_overlap_against_a_loop() -> None:
    histogram = make_histogram(0.3)
    expected = 0.0
    for i, (p, n) in enumerate(zip(histogram.positive, histogram.negative, strict=True)):
        expected += min(p, n) * (histogram.edges[i + 1] - histogram.edges[i])
    assert overlap(histogram) == pytest.approx(expected)
    assert 0 < overlap(histogram) < 1
    same = ScoreHistogram(histogram.edges, histogram.positive, histogram.positive, 1, 1, False)
    assert overlap(same) == pytest.approx(1)


def test_a_difference_that_chance_explains_is_told_as_such() -> None:
    told = verdict(two([1, 2] * 20, [2, 1] * 19 + [1, 1]))
    assert "p = 1.000" in told.headline.replace("\u00a0", " ")
    assert any("four times in five" in point for point in told.points)
    few = verdict(two([2, 2, 2, 2], [1, 1, 1, 2]))
    assert "did not clearly change" in few.headline
    assert any("no p-value below 0.25 was possible" in point for point in few.points)


def test_points_tell_the_calibrated_threshold() -> None:
    points = verdict(Report("t", "d", [section("a", [1, 2], threshold_card=make_card())], "R@1")).points
    (told,) = [point for point in points if "0.512" in point]
    assert "“a”" in told
    assert "few pairs are accepted wrongly" in told
    assert "12 classes exceed it" in told


def test_a_report_refuses_what_cannot_be_compared() -> None:
    good = section("a", [1, 2])
    with pytest.raises(InputError, match="at least one model"):
        Report("t", "d", [], "R@1")
    with pytest.raises(InputError, match="two models of the report are named 'a'"):
        Report("t", "d", [good, good], "R@1")
    with pytest.raises(UnknownNameError, match="did you mean R@1"):
        Report("t", "d", [good], "R@11")
    with pytest.raises(InputError, match="scored on no query"):
        Report("t", "d", [ModelSection("a", RankingResult([], {}, {}, [], [], 0.0, 0))], "R@1")
    with pytest.raises(InputError, match=r"different queries, for example 'q2' \(1 in all\)"):
        Report("t", "d", [good, section("b", [1, 2, 3])], "R@1")


def test_cards_and_frontiers_are_checked() -> None:
    query_card = calibrate_no_answer([0.2, 0.5, 0.4] * 20, alpha=0.1, corpus_size=10)
    with pytest.raises(InputError, match="query card"):
        section("a", [1, 2], threshold_card=query_card)
    with pytest.raises(InputError, match="recall lies in"):
        section("a", [1, 2], frontier=[FrontierPoint("nprobe=1", 1.5, 0.1)])


def test_a_single_note_is_one_note() -> None:
    report = Report("t", "d", [make_section("a", 0)], "R@1", notes="one remark")
    assert list(report.notes) == ["one remark"]


def test_versions_are_those_installed() -> None:
    versions = library_versions()
    assert versions["numpy"] == np.__version__
    assert versions["python"].startswith("3.")

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from nearfar.errors import InputError, UnknownNameError
from nearfar.eval import RankingResult, ScoreHistogram
from nearfar.eval.report import ModelSection, Report, library_versions
from nearfar.eval.report.comparison import compare, comparisons, contrast, overlap, verdict
from tests.eval.report.report_samples import make_histogram, make_opis, make_ranking, make_section


def section(name: str, ranks: list[int], **more: object) -> ModelSection:
    return ModelSection(name, make_ranking(np.array(ranks)), **more)  # type: ignore[arg-type]


def two(before: list[int], after: list[int], **more: object) -> Report:
    return Report("t", "d", [section("old", before, **more), section("new", after, **more)], "R@1")


def test_interval_is_that_of_the_paired_mean() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(1, 20, 200), rng.integers(1, 12, 200)
    change = compare(section("a", list(before)), section("b", list(after)), "RR@10")
    value = [1 / b if b <= 10 else 0.0 for b in before]
    new = [1 / a if a <= 10 else 0.0 for a in after]
    differences = [y - x for x, y in zip(value, new, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    normal = statistics.NormalDist(mean, error)
    assert change.difference == pytest.approx(mean)
    assert change.low == pytest.approx(normal.inv_cdf(0.025))
    assert change.high == pytest.approx(normal.inv_cdf(0.975))
    assert change.risen == sum(d > 0 for d in differences)
    assert change.fallen == sum(d < 0 for d in differences)
    assert change.unchanged == sum(d == 0 for d in differences)


def test_queries_are_paired_by_id_not_by_place() -> None:
    ranks = np.arange(1, 41)
    ids = [f"q{i}" for i in range(40)]
    shuffled = np.random.default_rng(0).permutation(40)
    first = ModelSection("a", make_ranking(ranks, ids))
    second = ModelSection("b", make_ranking(ranks[shuffled], [ids[i] for i in shuffled]))
    change = compare(first, second, "RR@10")
    assert (change.risen, change.fallen, change.unchanged) == (0, 0, 40)
    assert change.low == change.high == 0


def test_few_queries_have_no_interval() -> None:
    change = compare(section("a", [2] * 29), section("b", [1] * 29), "R@1")
    assert change.low is None
    assert change.high is None
    assert change.clear


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
    assert told.headline == "R@1 on 4 queries of d is 0.750."
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


def test_comparisons_cover_every_shared_metric() -> None:
    report = two([1] * 40, [2] * 40)
    assert [c.metric for c in comparisons(report)] == ["R@1", "R@10", "RR@10"]


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


def test_a_single_note_is_one_note() -> None:
    report = Report("t", "d", [make_section("a", 0)], "R@1", notes="one remark")
    assert list(report.notes) == ["one remark"]


def test_versions_are_those_installed() -> None:
    versions = library_versions()
    assert versions["numpy"] == np.__version__
    assert versions["python"].startswith("3.")

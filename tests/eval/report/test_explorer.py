"""What the query explorer is given, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nearfar.eval.report import Report
from nearfar.eval.report.explorer import explorer
from nearfar.eval.report.html_json import script_json
from tests.eval.report.report_samples import make_section


def made(queries: int, **options: object) -> Report:
    models = [make_section(name, seed, queries=queries, **options) for seed, name in enumerate("ab")]  # type: ignore[arg-type]
    return Report("t", "d", models, "RR@10")


def size(content: object) -> int:
    return len(script_json(content).encode())


def test_queries_values_and_documents() -> None:
    report = made(30)
    found = explorer(report)
    assert found is not None
    names = [document[0] for document in found.content["documents"]]
    assert len(names) == len(set(names))
    for name, text, values, expected, total, returned in found.content["queries"]:
        assert text == f"question {name}"
        for model, value, answers in zip(report.models, values, returned, strict=True):
            example = next(e for e in model.answers if e.query_id == name)
            assert value == pytest.approx(example.value, abs=1e-4)
            assert [(names[at], bool(mark)) for at, _, mark in answers] == [
                (d.id, d.relevant) for d in example.returned
            ]
        ((at, grade, ranks),) = expected
        assert (names[at], grade, total) == (f"{name}-answer", 1, 1)
        assert ranks == [next(e for e in m.answers if e.query_id == name).expected[0].rank for m in report.models]
    assert found.note.startswith("All 30 queries are here, with the first 5 documents of each model")


def test_texts_are_cut_before_queries_are_left_out() -> None:
    report = made(50, text="a rather long text " * 20)
    whole = explorer(report, budget=None)
    assert whole is not None
    half = explorer(report, budget=size(whole.content) // 2)
    assert half is not None
    assert size(half.content) <= size(whole.content) // 2
    assert half.queries == 50
    assert half.characters < 300
    tight = explorer(report, budget=6000)
    assert tight is not None
    assert size(tight.content) <= 6000
    assert 1 < tight.queries < 50
    assert f"{tight.queries} of 50 queries are here, those on which the models differ most" in tight.note


def test_the_queries_kept_are_those_that_changed_most() -> None:
    report = made(50)
    tight = explorer(report, budget=4000)
    assert tight is not None
    change = {
        name: abs(a - b)
        for name, a, b in zip(
            report.models[0].ranking.query_ids,
            *(model.ranking.per_query["RR@10"] for model in report.models),
            strict=True,
        )
    }
    kept = {query[0] for query in tight.content["queries"]}
    assert min(change[name] for name in kept) >= max(change[name] for name in change.keys() - kept)


def test_models_that_bring_no_answers() -> None:
    report = made(10)
    without = [replace(model, answers=()) for model in report.models]
    assert explorer(replace(report, models=without)) is None
    found = explorer(replace(report, models=[report.models[0], without[1]]))
    assert found is not None
    assert [query[5][1] for query in found.content["queries"]] == [None] * 10

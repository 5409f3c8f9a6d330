"""The page in a real browser: charts, explorer, keyboard, themes; no error and no request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from nearfar.eval.report import ModelSection, Report, write_report
from tests.eval.report.chromium import BINARY, SCREENSHOTS, Chromium
from tests.eval.report.report_samples import make_card, make_frontier, make_section
from tests.eval.report.test_report_html import hostile_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BINARY is None, reason="no Chromium on this machine; `make browser` or apt-get install chromium"
    ),
]


def sample(names: str = "ab") -> Report:
    models = [make_section(name, seed, queries=60) for seed, name in enumerate(names)]
    models[-1] = replace(models[-1], threshold_card=make_card(), frontier=make_frontier())
    return Report("A comparison", "unseen terms", models, "RR@10", notes=["A remark."], recipe={"seed": 0})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    bare = [ModelSection(model.name, model.ranking) for model in sample().models]
    reports = {
        "two": sample(),
        "one": sample("a"),
        "three": sample("abc"),
        "hostile": hostile_report(),
        "bare": Report("t", "d", bare, "R@1"),
    }
    return {name: write_report(report, folder / name) for name, report in reports.items()}


def shown(browser: Chromium) -> list[str]:
    found: list[str] = browser.run("[...document.querySelectorAll('#explore-list b')].map(b => b.textContent)")
    return found


def choose(browser: Chromium, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('explore-{name}'); e.value = {value!r};"
        " e.dispatchEvent(new Event(e.tagName === 'INPUT' ? 'input' : 'change', {bubbles: true})); })()"
    )


def count(browser: Chromium) -> int:
    return int(browser.run("document.getElementById('explore-count').textContent").split()[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["two", "one", "three", "hostile", "bare"])
def test_every_chart_is_drawn_without_error_or_request(
    browser: Chromium, pages: dict[str, Path], name: str, scheme: str
) -> None:
    browser.open(pages[name], scheme)
    browser.wait("document.documentElement.dataset.theme")
    undrawn: list[str] = browser.run(
        "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.scatterlayer path')).map(c => c.id)"
    )
    assert undrawn == []
    assert browser.run("document.documentElement.dataset.theme") == scheme
    assert browser.problems == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.run("document.images.length") == 0


AXE = """axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations.map(
    rule => [rule.impact, rule.id, rule.nodes[0].target.join(" "), rule.nodes[0].failureSummary]))"""


@pytest.mark.parametrize(("name", "scheme"), [("two", "light"), ("two", "dark"), ("one", "light")])
def test_axe_finds_nothing_serious(browser: Chromium, pages: dict[str, Path], name: str, scheme: str) -> None:
    """axe-core (MPL-2.0, https://github.com/dequelabs/axe-core) out of a package that carries it; all is unfolded."""
    browser.open(pages[name], scheme)
    browser.wait("document.documentElement.dataset.theme")
    folded = "details:not(#explore-list li:nth-child(n + 4) details)"  # a few queries look like all of them
    browser.run(f"document.querySelectorAll('{folded}').forEach(block => {{ block.open = true; }})")
    browser.run((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    assert [finding for finding in browser.run(AXE) if finding[0] in {"serious", "critical"}] == []


def test_axe_would_find_faint_text_and_a_nameless_button(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["bare"])
    browser.run((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    faults = '<p style="color: #ccc">faint</p><button></button>'
    browser.run(f"document.querySelector('main').insertAdjacentHTML('beforeend', {faults!r})")
    assert {"color-contrast", "button-name"} <= {finding[1] for finding in browser.run(AXE)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots_are_kept(browser: Chromium, pages: dict[str, Path], scheme: str) -> None:
    browser.open(pages["two"], scheme)
    browser.wait("document.querySelectorAll('.chart .scatterlayer path').length > 20")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"report-{scheme}.png"
    browser.screenshot(picture)
    size = browser.run("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    assert picture.read_bytes()[16:24] == b"".join(length.to_bytes(4, "big") for length in size)  # of the PNG header


def test_nothing_is_wider_than_a_phone(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"], width=360)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= 360


def expected_kinds(report: Report) -> dict[str, list[str]]:
    before, after = (dict(zip(m.ranking.query_ids, m.ranking.per_query["RR@10"], strict=True)) for m in report.models)
    kinds: dict[str, list[str]] = {"won": [], "lost": [], "same": []}
    for query, old in before.items():
        new = after[query]
        kinds["won" if new > old else "lost" if new < old else "same"].append(f"question {query}")
    return kinds


def test_filters_show_wins_losses_and_unchanged(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    assert count(browser) == 60
    kinds = expected_kinds(sample())
    assert all(kinds.values())
    for kind, queries in kinds.items():
        choose(browser, "filter", kind)
        assert count(browser) == len(queries)
        assert shown(browser) == queries[:20]
    choose(browser, "filter", "all")
    choose(browser, "order", "change")
    first = shown(browser)[0]
    changes = {
        f"question {query}": abs(a - b)
        for query, a, b in zip(
            sample().models[0].ranking.query_ids, *(m.ranking.per_query["RR@10"] for m in sample().models), strict=True
        )
    }
    assert changes[first] == max(changes.values())


def test_search_finds_queries_and_their_documents(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    choose(browser, "text", "QUESTION q17")
    assert shown(browser) == ["question q17"]
    choose(browser, "text", "q23-answer")
    assert shown(browser) == ["question q23"]
    choose(browser, "text", "no such words")
    assert count(browser) == 0
    assert shown(browser) == []


def test_pages_turn(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    first = shown(browser)
    browser.run("document.getElementById('explore-next').click()")
    second = shown(browser)
    browser.run("document.getElementById('explore-next').click()")
    assert len({*first, *second, *shown(browser)}) == 60
    assert browser.run("document.getElementById('explore-next').disabled")
    browser.run("document.getElementById('explore-previous').click()")
    assert shown(browser) == second


def test_the_keyboard_reaches_everything(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    browser.press("/")
    assert browser.run("document.activeElement.id") == "explore-text"
    assert browser.run("document.activeElement.value") == ""
    browser.run("document.querySelector('#explore-list summary').focus()")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press("ArrowUp")
    browser.press("Enter")
    browser.wait("document.querySelector('#explore-list details[open] .sides')")
    assert browser.run("document.querySelector('#explore-list details[open] b').textContent") == "question q1"


def opened(browser: Chromium, place: int) -> list[list[str]]:
    """The documents' ids in each column of an opened query; the expected ones first."""
    browser.run(f"document.querySelectorAll('#explore-list details')[{place}].open = true")
    browser.wait(f"document.querySelectorAll('#explore-list details')[{place}].querySelector('.sides')")
    found: list[list[str]] = browser.run(
        f"[...document.querySelectorAll('#explore-list details')[{place}].querySelectorAll('.sides > div')]"
        ".map(side => [...side.querySelectorAll('.id')].map(e => e.textContent))"
    )
    return found


def test_answers_stand_side_by_side(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    wanted, left, right = opened(browser, 0)
    examples = [next(e for e in m.answers if e.query_id == "q0") for m in sample().models]
    assert wanted == ["q0-answer"]
    assert [left, right] == [[d.id for d in example.returned] for example in examples]


def test_any_two_of_three_models_can_be_compared(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["three"])
    assert browser.run("!document.getElementById('explore-models').hidden")
    choose(browser, "left", "1")
    choose(browser, "right", "0")
    _, left, right = opened(browser, 5)
    examples: list[Any] = [next(e for e in sample("abc").models[m].answers if e.query_id == "q5") for m in (1, 0)]
    assert [left, right] == [[d.id for d in example.returned] for example in examples]


def test_hostile_answers_are_text(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    opened(browser, 0)
    assert browser.run("document.querySelectorAll('#explore img, #explore script').length") == 0
    assert "<img src=x" in browser.run("document.getElementById('explore-list').textContent")
    assert browser.problems == []


def test_tables_can_be_read_without_scripts(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=pages["two"].as_uri())
        html, end = "", time.monotonic() + 60
        while 'id="charts"' not in html:  # comes last; no script can tell that the page is whole
            assert time.monotonic() < end
            root = browser.send("DOM.getDocument", depth=0)["root"]["nodeId"]
            html = browser.send("DOM.getOuterHTML", nodeId=root)["outerHTML"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert "Searching and filtering need JavaScript" in html
    assert "★" in html
    assert "Operating points of single pairs" in html


def test_the_printed_page_unfolds_and_is_light(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["two"], "dark")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.documentElement.dataset.theme") == "light"
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert browser.run("document.querySelectorAll('details:not([open])').length") > 5
    assert len(browser.send("Page.printToPDF")["data"]) > 50_000

"""The report's tables as Markdown, for a pull request or a model card."""

from __future__ import annotations

import re

from nearfar.eval.report.comparison import verdict
from nearfar.eval.report.formatting import count, metric, shorten
from nearfar.eval.report.model import ModelSection, QueryExample, Report
from nearfar.eval.report.tables import (
    Table,
    card_table,
    failing_table,
    frontier_table,
    metrics_table,
    opis_table,
    opis_warnings,
    pairs_table,
    rates_table,
    recall_table,
    settings_table,
    tests_table,
    worst_classes_table,
)

_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


def report_markdown(report: Report) -> str:
    """The verdict and every table of the page, without its charts."""
    told = verdict(report)
    blocks = [f"# {escape(report.title)}", escape(told.headline)]
    blocks += ["\n".join(f"- {escape(point)}" for point in told.points)] if told.points else []
    blocks += [escape(note) for note in report.notes]
    blocks += _section("Metrics", metrics_table(report))
    blocks += _section("Tests of the differences", tests_table(report))
    blocks += _section("Recall@K", recall_table(report))
    blocks += _section("Scores of pairs", pairs_table(report))
    blocks += _section("Error rates of pairs", rates_table(report))
    for model in report.models:
        if model.threshold_card is not None:
            blocks += _section(f"Calibrated threshold, {model.name}", card_table(model.threshold_card))
            blocks += [escape(model.threshold_card.promise)]
            blocks += ["\n".join(f"- {escape(said)}" for said in model.threshold_card.assumptions)]
            blocks += _section(f"Classes it fails, {model.name}", failing_table(model.threshold_card))
    blocks += _section("Recall and latency", frontier_table(report))
    blocks += _section("Threshold consistency (OPIS)", opis_table(report))
    blocks += ["\n".join(f"- {escape(warning)}" for warning in warnings)] if (warnings := opis_warnings(report)) else []
    for model in report.models:
        if model.opis is not None:
            blocks += _section(f"Worst classes, {model.name}", worst_classes_table(model.opis))
    for model in reversed(report.models):
        blocks += _section(f"Worst queries, {model.name}", _worst_table(model))
    blocks += _section("Recipe", settings_table("Recipe", report.recipe))
    blocks += _section("Versions", settings_table("Versions", report.versions))
    if report.acknowledgement:
        blocks += ["## Data", escape(report.acknowledgement)]
    blocks += [f"Created {escape(report.created)}."]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    r"""A text on one line that Markdown shows letter by letter and HTML does not read.

    Example:
        >>> escape("a|b <i>\n*c*")
        'a\\|b &lt;i&gt; \\*c\\*'
    """
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def _section(title: str, table: Table | None) -> list[str]:
    if table is None or not table.rows:
        return []
    return [f"## {escape(title)}", _table(table)]


def _table(table: Table) -> str:
    rule = [":---" if column in table.text_columns else "---:" for column in range(len(table.header))]
    rows = [[escape(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def _worst_table(model: ModelSection) -> Table | None:
    if not model.worst_queries:
        return None
    name = model.worst_queries[0].metric
    rows = [
        [shorten(example.text, 120), metric(example.value), _expected(example), _first(example)]
        for example in model.worst_queries
    ]
    return Table("Worst queries", ["Query", name, "Expected (rank)", "Returned first (score)"], rows, (0, 2, 3))


def _expected(example: QueryExample) -> str:
    if not example.expected:
        return "none listed"
    best = example.expected[0]
    rank = f"not in top {count(example.returned_total)}" if best.rank is None else count(best.rank)
    more = f" and {count(example.expected_total - 1)} more" if example.expected_total > 1 else ""
    return f"{shorten(best.text, 120)} ({rank}){more}"


def _first(example: QueryExample) -> str:
    if not example.returned:
        return "nothing"
    return f"{shorten(example.returned[0].text, 120)} ({metric(example.returned[0].score)})"

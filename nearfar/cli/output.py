"""What commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Output:
    """Standard output of a command.

    Args:
        as_json: print nothing but the final object.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._console = Console(soft_wrap=True, highlight=False)

    @property
    def show_progress(self) -> bool:
        """Draw progress bars (on standard error) for people only."""
        return not self.as_json and Console(stderr=True).is_terminal

    def line(self, text: str = "") -> None:
        """A line of text, taken literally."""
        if not self.as_json:
            self._console.print(text, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
        """A table; the first column is text, the others are aligned right when they hold numbers."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
        for position, column in enumerate(columns):
            table.add_column(
                column, justify="right" if position and _numeric(rows, position) else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*[_literal(cell) for cell in row])
        Console(highlight=False).print(table)

    def result(self, content: Mapping[str, Any]) -> None:
        """The command's result, printed with ``--json`` only."""
        if self.as_json:
            print(json.dumps(content, indent=2, ensure_ascii=False))  # noqa: T201


def _literal(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def _numeric(rows: Sequence[Sequence[str]], position: int) -> bool:
    return all(row[position][:1] in "+-.0123456789" for row in rows)

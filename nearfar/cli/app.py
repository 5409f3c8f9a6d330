"""The tree of commands."""

from __future__ import annotations

import typer

from nearfar.cli import calibrate, compare, demo, evaluate, index, losses, mine, search, train

app = typer.Typer(
    name="nearfar",
    help="Fine-tune embedding models, index and search with them, and measure what was gained.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("search", epilog=search.EXAMPLE)(search.search)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("calibrate", epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.command("compare", epilog=compare.EXAMPLE)(compare.compare)
app.command("mine", epilog=mine.EXAMPLE)(mine.mine)
app.command("losses", epilog=losses.EXAMPLE)(losses.losses)
app.add_typer(index.app, name="index")

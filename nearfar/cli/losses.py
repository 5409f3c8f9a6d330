"""``nearfar losses``: the registry."""

from __future__ import annotations

from nearfar.cli.output import AsJson, Output

EXAMPLE = "Example: nearfar losses"


def losses(as_json: AsJson = False) -> None:
    """List every loss with what it learns from, its options with their defaults, and its paper."""
    from nearfar.losses import list_losses

    out = Output(as_json)
    entries = list_losses()
    for entry in entries:
        inputs = "texts with labels" if entry.loss.capabilities.inputs == "labels" else "queries and documents"
        options = ", ".join(f"{name}={_shown(value)}" for name, value in _own_options(entry.options).items())
        out.line(f"{entry.name}: {entry.summary}")
        out.line(f"    from {inputs}; {options}")
        out.line(f"    {entry.loss.paper}\n" if entry.loss.paper else "")
    out.line("Losses of other libraries: pml:<class> (pytorch-metric-learning), st:<class> (sentence-transformers).")
    out.result(
        {
            entry.name: {
                "class": entry.loss.__name__,
                "summary": entry.summary,
                "inputs": entry.loss.capabilities.inputs,
                "streams": entry.loss.capabilities.streams,
                "options": entry.options,
                "paper": entry.loss.paper,
            }
            for entry in entries
        }
    )


def _own_options(options: dict[str, object]) -> dict[str, object]:
    """Without those that every loss has."""
    return {name: value for name, value in options.items() if name not in ("reduction", "path")}


def _shown(value: object) -> str:
    return "…" if value == "required" else str(value)

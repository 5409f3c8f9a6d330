"""Write docs/losses.md, the reference of all losses, from their docstrings.

Run it after changing a docstring: ``python docs/build_reference.py``. A test fails while the page is out of date.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from nearfar.losses import HardNegativeMixing, LossEntry, Metrix, WithOptions, list_losses

PAGE = Path(__file__).with_name("losses.md")
OPTIONS = (Metrix, HardNegativeMixing, WithOptions)
_SECTION = re.compile(r"^(Args|Shape|Raises|Example|Source|Attributes|Note|Uncertain):\s*(.*)$")
_CAPABILITIES = {
    "streams": "streams",
    "unreduced": "a value per row",
    "reference_set": "reference set",
    "mined_pairs": "mined pairs",
    "multi_label": "multi-hot labels",
    "needs_norms": "reads the length of embeddings",
    "gathers": "gathers across devices",
    "mixing": "mixed examples",
    "synthesis": "synthetic negatives",
}


def page() -> str:
    """The whole reference."""
    entries = list_losses()
    parts = [
        "# Losses",
        "Generated from the docstrings by `python docs/build_reference.py`. Formulas are TeX. What a docstring marks "
        '"from memory" was not checked against the paper.',
        overview(entries),
        *(section(entry) for entry in entries),
        "# Options of the call",
        *(option_section(option) for option in OPTIONS),
    ]
    return "\n\n".join(parts) + "\n"


def overview(entries: list[LossEntry]) -> str:
    """One row a loss."""
    rows = ["| loss | learns from | can |", "|---|---|---|"]
    for entry in entries:
        inputs = "labels" if entry.loss.capabilities.inputs == "labels" else "queries and documents"
        rows.append(f"| [{entry.name}](#{entry.loss.__name__.lower()}) | {inputs} | {', '.join(able(entry))} |")
    return "\n".join(rows)


def able(entry: LossEntry) -> list[str]:
    """What a loss declares that it can do, in words."""
    return [words for name, words in _CAPABILITIES.items() if getattr(entry.loss.capabilities, name, False)]


def section(entry: LossEntry) -> str:
    """Everything about one loss."""
    lines = (inspect.getdoc(entry.loss) or "").splitlines()
    options = ", ".join(
        name if default == "required" else f"{name}={default!r}" for name, default in entry.options.items()
    )
    head = [f"## {entry.loss.__name__}", f"`get_loss({entry.name!r})`, `{entry.loss.__name__}({options})`"]
    if entry.loss.paper:
        head.append(f"Paper: <{entry.loss.paper}>")
    return "\n\n".join([*head, body(lines), f"Can: {', '.join(able(entry))}."])


def option_section(option: type) -> str:
    """Everything about what a loss may be called with."""
    return "\n\n".join([f"## {option.__name__}", body((inspect.getdoc(option) or "").splitlines())])


def body(lines: list[str]) -> str:
    """A docstring as Markdown: formulas between dollars, sections under bold words."""
    out: list[str] = []
    current, maths = "", False
    for line in lines:
        found = _SECTION.match(line)
        if found:
            out += ["$$", ""] if maths else []
            current, maths = found[1], False
            heading = {"Args": "Options", "Source": "Where it comes from"}.get(current, current)
            out += ["", f"**{heading}.** {found[2]}".rstrip()]
            out += [] if found[2] else [""]
            out += ["```python"] if current == "Example" else []
            continue
        if line.startswith(".. math::"):
            out += ["$$", line.removeprefix(".. math::").strip()]
            maths = True
            continue
        if maths and line and not line.startswith(" "):
            out += ["$$", ""]
            maths = False
        if current == "Example" and not line.strip():
            out += ["```", ""]
            current = ""
            continue
        out.append(line if maths or not current else entry_line(current, line))
    if maths:
        out.append("$$")
    if current == "Example":
        out.append("```")
    text = "\n".join(line.rstrip() for line in out).replace("``", "`").replace("```` ", "```")
    text = re.sub(r":math:`([^`]*)`", lambda found: f"${found[1]}$", text)
    text = re.sub(r"\$\$\n\s*(.*?)\s*\n\$\$", r"$$\n\1\n$$", _mend_fences(text), flags=re.DOTALL)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def entry_line(section: str, line: str) -> str:
    """One line of a section: options become a list."""
    text = line.removeprefix("    ")
    if section in ("Args", "Attributes", "Raises") and text and not text.startswith(" "):
        name, colon, rest = text.partition(": ")
        return f"- `{name}`: {rest}" if colon else f"- {text}"
    return (
        text if section == "Example" else ("  " + text.strip() if section in ("Args", "Attributes") else text.strip())
    )


def _mend_fences(text: str) -> str:
    # Turning ``code`` into `code` also shortens the fences.
    return re.sub(r"^`{2}(python)?$", lambda found: "```" + (found[1] or ""), text, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

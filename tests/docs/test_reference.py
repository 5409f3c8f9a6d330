"""The reference page says what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nearfar.losses import list_losses

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def build_reference():
    spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(build_reference):
    message = "run `python docs/build_reference.py`"
    assert (DOCS / "losses.md").read_text(encoding="utf-8") == build_reference.page(), message


@pytest.mark.parametrize("entry", list_losses(), ids=lambda entry: entry.name)
def test_every_loss_documents_its_options_shape_errors_example_and_source(build_reference, entry):
    text = build_reference.section(entry)
    for part in ("**Options.**", "**Shape.**", "**Raises.**", "**Example.**"):
        assert part in text
    for option in entry.options:
        assert f"- `{option}`:" in text, f"option {option} of {entry.name} is not documented"
    assert text.count("```") % 2 == 0
    assert text.count("$$") % 2 == 0

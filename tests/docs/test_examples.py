"""Every example runs, learns what it says, and prints the figures it returns."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Example, seeds, and by how much the named figure must rise over the untrained model's.
LEARNING = [
    ("images_digits", (0, 1), {"unseen_hit@1": 0.10, "unseen_MAP@R": 0.25}),
    ("plain_loop", (0, 1), {"unseen_hit@1": 0.10, "unseen_MAP@R": 0.25}),
    ("text_hpo", (0,), {"hpo-test_R@1": 0.06, "hpo-test_R@10": 0.06}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds", "rises"), LEARNING, ids=[name for name, *_ in LEARNING])
def test_it_learns(name, seeds, rises, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    for seed in seeds:
        figures = example.main(seed)
        shown = capsys.readouterr().out
        for figure, rise in rises.items():
            before, after = figures["untrained"][figure], figures["trained"][figure]
            assert after > before + rise, (seed, figure, before, after)
            assert f"{before:.4f}" in shown
            assert f"{after:.4f}" in shown


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(name for name, *_ in LEARNING)

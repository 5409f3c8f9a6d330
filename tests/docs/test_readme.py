"""Every command and example of the README runs, in the order of the page, in one folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nearfar.cli import run

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_FILE = re.compile(r"`([\w.]+\.jsonl)`:\n\n```json\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    for name, content in _FILE.findall(README.read_text(encoding="utf-8")):
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def blocks(kind):
    return [content for found, content in _BLOCK.findall(README.read_text(encoding="utf-8")) if found == kind]


@pytest.mark.slow
def test_every_command_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert commands[:3] == ["make demo", '.venv/bin/nearfar search demo/index "can\'t stop shaking hands"', "make test"]
    commands.remove("make test")  # this very suite
    for command in commands:
        words = shlex.split(command.replace("make demo", "nearfar demo --output demo").replace(".venv/bin/", ""))
        assert words[0] == "nearfar"
        assert run(words[1:]) == 0, command
        shown = capsys.readouterr().out
        if "shaking hands" in command:
            assert "Tremor" in shown or "tremor" in shown
        if "heart beats" in command:
            assert "Tachycardia" in shown
        if "track my parcel" in command:
            assert "No document reaches the threshold." in shown
        if command == "make demo":
            assert_the_demo_gained(folder, shown)


def assert_the_demo_gained(folder, shown):
    assert "unseen terms" in shown
    report = json.loads((folder / "demo" / "report" / "report.json").read_text(encoding="utf-8"))
    assert "Human Phenotype Ontology" in json.dumps(report)
    before, after = (model["ranking"]["mean"]["R@1"] for model in report["models"])
    assert before < 0.4
    assert after > 0.55
    assert (folder / "demo" / "report" / "report.html").stat().st_size > 1e6


def test_every_python_example_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(blocks("python")) >= 3
    for example in blocks("python"):
        exec(compile(example, str(README), "exec"), {})

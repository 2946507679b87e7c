"""The walk of docs/architecture.md leads to the lines that it names."""

from __future__ import annotations

import re

from tests.architecture.source import ROOT

STEP = re.compile(r"^\|[^|]+\| `([\w./-]+):(\d+)` \| `([^`]+)` \|$", re.MULTILINE)


def judge_walk(text: str, read) -> list[str]:
    """Returns the steps that do not lead to their name. read(path) -> the file's lines."""
    found = []
    for path, number, name in STEP.findall(text):
        lines = read(path)
        if not lines[int(number) - 1 : int(number)] or not lines[int(number) - 1].strip().startswith(name):
            places = [n for n, line in enumerate(lines, 1) if line.strip().startswith(name)]
            found.append(f"{path}:{number} is not `{name}`; it stands in lines {places}")
    return found


def test_walk_leads_to_the_code():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert len(STEP.findall(text)) >= 15
    assert judge_walk(text, lambda path: (ROOT / path).read_text(encoding="utf-8").splitlines()) == []


def test_walk_mistakes_are_caught():
    step = "| the decoder | `a.py:2` | `class Decoder` |"
    assert judge_walk(step, lambda path: ["import x", "class Decoder:"]) == []
    assert judge_walk(step, lambda path: ["class Decoder:"]) == [
        "a.py:2 is not `class Decoder`; it stands in lines [1]"
    ]

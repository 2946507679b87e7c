"""Every Python file outside tests/ stands once in the room table of docs/architecture.md, and vice versa."""

from __future__ import annotations

import re

from tests.architecture.source import ROOT, project_files

ROW = re.compile(r"^\|\s*`([\w./-]+\.py)`\s*\|(.*)\|\s*$")


def room_files() -> list[str]:
    """Returns the files that need a row; an empty `__init__.py` holds nothing to describe."""
    files = [f for f in project_files() if f.suffix == ".py" and (f.name != "__init__.py" or f.stat().st_size)]
    paths = [f.relative_to(ROOT).as_posix() for f in files]
    return [p for p in paths if not p.startswith("tests/")]


def judge_table(text: str, files) -> list[str]:
    """Returns files without a row, rows without a file, doubled and empty rows."""
    rows = [(m[1], m[2].strip(" |")) for line in text.splitlines() if (m := ROW.match(line))]
    named = [path for path, _ in rows]
    found = [f"{path} has no row in the room table" for path in files if path not in named]
    found += [f"the room table names {path}, which does not exist" for path in named if path not in files]
    found += [f"{path} stands in {named.count(path)} rows" for path in sorted(set(named)) if named.count(path) > 1]
    return found + [f"the row of {path} says nothing" for path, says in rows if not says]


def test_room_table_is_complete():
    assert judge_table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"), room_files()) == []


def test_wrong_tables_are_caught():
    table = "| file | holds |\n|---|---|\n| `wan/a.py` | masks |\n| `train.py` | the door |\n"
    assert judge_table(table, ["wan/a.py", "train.py"]) == []
    assert judge_table(table, ["wan/a.py", "train.py", "wan/b.py"]) == ["wan/b.py has no row in the room table"]
    assert judge_table(table, ["wan/a.py"]) == ["the room table names train.py, which does not exist"]
    assert judge_table(table + "| `train.py` | again |\n", ["wan/a.py", "train.py"]) == ["train.py stands in 2 rows"]
    assert judge_table("| `train.py` | |\n", ["train.py"]) == ["the row of train.py says nothing"]
    assert len(judge_table("text that names `train.py`\n", ["train.py"])) == 1

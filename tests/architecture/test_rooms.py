"""Every Python file outside tests/ is named once in the room table of docs/architecture.md, and vice versa."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tests.architecture.source import ROOT, project_files

ROW = re.compile(r"^\|\s*`([\w./-]+)/`\s*\|(.*)\|(.*)\|\s*$")


def room_files() -> list[str]:
    """Returns the files that must be named; an empty `__init__.py` holds nothing to describe."""
    files = [f for f in project_files() if f.suffix == ".py" and (f.name != "__init__.py" or f.stat().st_size)]
    paths = [f.relative_to(ROOT).as_posix() for f in files]
    return [p for p in paths if not p.startswith("tests/")]


def judge_table(text: str, files: Iterable[str]) -> list[str]:
    """Returns files that are not named, names without a file, doubled names, and folders that say nothing."""
    rows = [m.groups() for line in text.splitlines() if (m := ROW.match(line))]
    named = Counter()
    for folder, _, names in rows:
        named.update(f"{folder}/{name}.py".removeprefix("./") for name in re.findall(r"`([\w-]+)`", names))
    files = set(files)
    found = [f"{path} is not named in the room table" for path in sorted(files - set(named))]
    found += [f"the room table names {path}, which does not exist" for path in sorted(set(named) - files)]
    found += [f"{path} is named {count} times" for path, count in sorted(named.items()) if count > 1]
    return found + [f"the row of {folder} says nothing" for folder, says, _ in rows if not says.strip()]


def test_room_table_is_complete():
    assert judge_table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"), room_files()) == []


def test_room_table_mistakes_are_caught():
    table = "| folder | holds | files |\n|---|---|---|\n| `wan/` | masks | `a` |\n| `./` | the doors | `train` |\n"
    assert judge_table(table, ["wan/a.py", "train.py"]) == []
    assert judge_table(table, ["wan/a.py", "train.py", "wan/b.py"]) == ["wan/b.py is not named in the room table"]
    assert judge_table(table, ["wan/a.py"]) == ["the room table names train.py, which does not exist"]
    assert judge_table(table + "| `./` | again | `train` |\n", ["wan/a.py", "train.py"]) == [
        "train.py is named 2 times"
    ]
    assert judge_table("| `./` | | `train` |\n", ["train.py"]) == ["the row of . says nothing"]
    assert len(judge_table("text that names `train.py`\n", ["train.py"])) == 1

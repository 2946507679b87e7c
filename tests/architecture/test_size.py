"""Files of at most 350 lines, functions of at most 60; docstrings and dataclass fields are not counted."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.source import ROOT, Source, dataclass_fields, get_docstring, python_sources

FILE_LINES, FUNCTION_LINES = 350, 60
ALLOWED = ROOT / "tests/architecture/allowed_sizes.txt"


def _span(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def counted_sizes(source: Source) -> dict[str, int]:
    """Returns the counted lines of the file (key: path) and of each function (key: path:Class.name)."""
    free: set[int] = set()
    for node in ast.walk(source.tree):
        if docstring := get_docstring(node):
            free |= _span(docstring)
        if isinstance(node, ast.ClassDef):
            free |= set().union(*map(_span, dataclass_fields(node)))
    sizes = {source.path: len(source.text.splitlines()) - len(free)}

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    key = f"{source.path}:{name}"
                    sizes[key] = max(sizes.get(key, 0), len(_span(child) - free))
                visit(child, f"{name}.")
            else:
                visit(child, prefix)

    visit(source.tree, "")
    return sizes


def read_allowed(text: str) -> dict[str, int]:
    """Reads the allow-list: `path[:function] lines` a line, # for comments."""
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {key: int(lines) for key, lines in rows}


def judge_sizes(sizes: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """Returns what is too long, and what the allow-list no longer needs."""
    found = []
    for key, lines in sizes.items():
        limit = FUNCTION_LINES if ":" in key else FILE_LINES
        ceiling = allowed.get(key, limit)
        if lines > max(limit, ceiling):
            found.append(f"{key} has {lines} lines, allowed are {max(limit, ceiling)}")
        if key in allowed and lines <= limit:
            found.append(f"{key} has {lines} lines: remove it from {ALLOWED.name}")
        elif key in allowed and lines < ceiling:
            found.append(f"{key} has {lines} lines: lower its entry in {ALLOWED.name}")
    return found + [f"{key} does not exist: remove it from {ALLOWED.name}" for key in allowed if key not in sizes]


def test_project_fits():
    sizes = {k: v for source in python_sources(with_tests=True) for k, v in counted_sizes(source).items()}
    assert judge_sizes(sizes, read_allowed(ALLOWED.read_text())) == []


def test_counting():
    text = '"""Two\nlines."""\n\n@dataclass\nclass A:\n    x: int = 0\n    y: int = 1\n\n'
    text += '    def f(self):\n        """Doc."""\n        return 1\n'
    sizes = counted_sizes(Source("wan/a.py", text))
    assert sizes == {"wan/a.py": 11 - 2 - 2 - 1, "wan/a.py:A.f": 2}
    plain = counted_sizes(Source("wan/a.py", text.replace("@dataclass", "@other")))
    assert plain["wan/a.py"] == 11 - 2 - 1


def test_nested_functions_count_for_both():
    sizes = counted_sizes(Source("wan/a.py", "def f():\n    def g():\n        return 1\n    return g\n"))
    assert (sizes["wan/a.py:f"], sizes["wan/a.py:f.g"]) == (4, 2)


def test_of_two_functions_with_one_name_the_longer_counts():
    text = "if x:\n    def f():\n        a = 1\n        return a\nelse:\n    def f():\n        return 2\n"
    assert counted_sizes(Source("wan/a.py", text))["wan/a.py:f"] == 3


def test_long_code_is_caught():
    function = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert len(judge_sizes(counted_sizes(Source("wan/a.py", function)), {})) == 1
    assert judge_sizes(counted_sizes(Source("wan/a.py", function.replace("    x = 1\n", "", 1))), {}) == []
    assert len(judge_sizes(counted_sizes(Source("wan/a.py", "x = 1\n" * (FILE_LINES + 1))), {})) == 1
    assert judge_sizes(counted_sizes(Source("wan/a.py", "x = 1\n" * FILE_LINES)), {}) == []


@pytest.mark.parametrize(
    ("lines", "allowed", "problems"),
    [
        (70, {"a.py:f": 70}, 0),
        (71, {"a.py:f": 70}, 1),  # grew
        (69, {"a.py:f": 70}, 1),  # shrank: the entry must follow
        (60, {"a.py:f": 70}, 1),  # no longer needed
        (10, {"a.py:g": 70}, 1),  # names nothing
    ],
)
def test_allow_list_only_shrinks(lines, allowed, problems):
    assert len(judge_sizes({"a.py:f": lines}, allowed)) == problems


def test_allow_list_is_read():
    assert read_allowed("# comment\n\nwan/a.py 400\nwan/a.py:f 70\n") == {"wan/a.py": 400, "wan/a.py:f": 70}

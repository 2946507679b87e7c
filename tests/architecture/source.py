"""Finds and parses the files that the architecture tests look at."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {".md", ".yaml", ".yml", ".txt", ".json", ".jsonl", ".sh", ".toml", ".cfg", ".html", ".js", ".css"}
TEXT_NAMES = {"Makefile", "run"}


@dataclass(frozen=True)
class Source:
    """One Python file: `path` relative to the root with forward slashes, its text and its tree."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        """The top-level folder, or the file's stem at the root: `wan`, `train`."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """The dotted import name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """The dotted name that relative imports start from."""
        return self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]


def ignored_folders() -> set[str]:
    """Returns the folder names that .gitignore leaves out of the project."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return {line.strip("/ ") for line in lines if line.endswith("/")}


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Returns every file of the project, sorted; hidden folders other than .ci and ignored ones left out."""
    skipped, found, folders = ignored_folders(), [], [ROOT]
    while folders:
        for entry in folders.pop().iterdir():
            hidden = entry.name.startswith(".") and entry.name != ".ci"
            if entry.is_dir() and not hidden and entry.name not in skipped:
                folders.append(entry)
            elif entry.is_file():
                found.append(entry)
    return tuple(sorted(found))


@functools.cache
def python_sources(with_tests: bool) -> tuple[Source, ...]:
    """Returns the parsed Python files of the project."""
    paths = [p.relative_to(ROOT).as_posix() for p in project_files() if p.suffix == ".py"]
    kept = [p for p in paths if with_tests or not p.startswith("tests/")]
    return tuple(Source(p, (ROOT / p).read_text(encoding="utf-8")) for p in kept)


def text_files() -> list[tuple[str, str]]:
    """Returns (path, text) of documents, recipes, prompts and scripts outside tests/."""
    found = []
    for file in project_files():
        path = file.relative_to(ROOT).as_posix()
        if not path.startswith(("tests/", "assets/")) and (file.suffix in TEXT_SUFFIXES or file.name in TEXT_NAMES):
            found.append((path, file.read_text(encoding="utf-8")))
    return found


def imported_names(source: Source, node: ast.stmt) -> list[str]:
    """Returns the dotted names that an import statement asks for, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = source.package.split(".") if source.package else []
    start = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
    module = ".".join(filter(None, (start, node.module)))
    return [f"{module}.{alias.name}" if module else alias.name for alias in node.names]


def imports(source: Source) -> list[tuple[int, str]]:
    """Returns (line, dotted name) of every import, those inside functions and of `import_module("name")` too."""
    found = [(n.lineno, name) for n in ast.walk(source.tree) for name in imported_names(source, n)]
    calls = [n for n in ast.walk(source.tree) if isinstance(n, ast.Call) and n.args]
    named = [n for n in calls if dotted(n.func).rpartition(".")[2] in ("import_module", "__import__")]
    return found + [(n.lineno, n.args[0].value) for n in named if isinstance(n.args[0], ast.Constant)]


def dotted(node: ast.AST) -> str:
    """Returns `a.b.c` for a chain of names and attributes, '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return ""


def get_docstring(node: ast.AST) -> ast.Expr | None:
    """Returns the docstring statement of a module, class or function."""
    body = getattr(node, "body", None)
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not body:
        return None
    first = body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first if text else None


def is_dataclass(node: ast.ClassDef) -> bool:
    """True when the class is decorated with `dataclass`, called or not."""
    targets = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(dotted(t).rpartition(".")[2] == "dataclass" for t in targets)


def dataclass_fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """Returns the field statements of a dataclass."""
    return [s for s in node.body if isinstance(s, ast.AnnAssign)] if is_dataclass(node) else []

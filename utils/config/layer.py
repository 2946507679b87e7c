"""Layers: the plain, untyped trees a configuration is made of, each value with the place it was written at.

A layer comes from a YAML file (`read_defaults`, `read_recipe`), from the command line (`parse_overrides`), or from
Python (`Layer("seed flag", {"seed": 3})`). Types are the business of `utils/config/load.py`.

The dialect is YAML 1.2's core schema, not PyYAML's 1.1: `1e-4` is a float, `off` and `no` are strings, `16:9` and
`2024-01-01` too, `007` is 7. Anchors, tags and repeated keys are errors, which `OmegaConf.load` would let pass.
Inheritance is the key `base`: another file, relative to the recipe, which is an earlier layer and may have a base.
"""

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.config.field import allowed, dotted

SECTIONS = ("common", "train", "infer")
COMMAND_LINE, DEFAULT_ORIGIN = "command line", "default"
MOST_DIGITS = 400  # of a whole number; Python itself refuses to read more than 4,300

_TAG = "tag:yaml.org,2002:"
_BARE_TEXT = re.compile(r"[A-Za-z_./][\w./+-]*")


class _Loader(yaml.SafeLoader):
    """The composer of PyYAML with the scalars of YAML 1.2, without anchors and tags."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        problem = ""
        if event.anchor is not None:
            problem = "anchors and aliases are not used here; inherit with `base: other.yaml` or write the value out"
        elif not isinstance(event, yaml.AliasEvent) and event.tag is not None:
            problem = f"the tag {event.tag!r} is not used here; write a plain value"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


for _name, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass(frozen=True)
class Layer:
    """One plain tree (dicts with string keys, lists, scalars) and the line of each key path, where lines are known."""

    source: str
    tree: dict[str, Any]
    lines: dict[tuple, int] = field(default_factory=dict)
    is_default: bool = False  # what it says like the dataclasses is nobody's choice

    def where(self, path: tuple) -> str:
        """Returns `file:line` of the key path, or of its nearest parent; only the source's name without lines."""
        nearest = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        return f"{self.source}:{self.lines[nearest]}" if nearest else self.source


def read_yaml(path: str | Path) -> Layer:
    """Returns one YAML file as a layer, `base` not followed.

    Errors: ValueError for a missing file (with the nearest name in its folder), for broken YAML, for a repeated key,
    an anchor, a tag, or a file that is not a mapping; each names the file and, where there is one, the line.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        names = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = [f" (is it {path.parent / name}?)" for name in difflib.get_close_matches(path.name, names, n=1)]
        raise ValueError(f"{path}: no such file{''.join(near)}; give the path of a YAML recipe")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save the recipe as UTF-8") from error
    lines: dict[tuple, int] = {}
    source = os.path.relpath(path) if Path.cwd() in path.parents else str(path)
    tree = _parse(text, source, lines)
    if not isinstance(tree, dict | None):
        raise ValueError(f"{source}: the top level is a {type(tree).__name__}; write `key: value` lines")
    return Layer(source, tree or {}, lines)


def read_recipe(path: str | Path, heirs: tuple[Path, ...] = ()) -> list[Layer]:
    """Returns the layers of a recipe, its chain of `base` files first. ValueError for a circle of bases."""
    path = Path(os.path.expanduser(path))
    layer, chain = read_yaml(path), (*heirs, path.resolve())
    base = layer.tree.pop("base", None)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise ValueError(f"{layer.where(('base',))}: base: got {base!r}; write the name of one YAML file")
    base = Path(os.path.normpath(path.parent / base))
    if base.resolve() in chain:
        names = " -> ".join(p.name for p in [*chain, base])
        raise ValueError(f"{layer.where(('base',))}: base: the recipes inherit in a circle ({names}); remove one")
    return [*read_recipe(base, chain), layer]


def read_defaults(path: str | Path, section: str) -> list[Layer]:
    """Returns the layers `common` and `section` ("train" or "infer") of the project-wide file.

    Errors: ValueError for a top-level key that is not a section, or a section that is not a mapping; for an installed
    copy, which has no such file.
    """
    if not Path(path).is_file():
        text = "the project's defaults are missing: recipes and assets are not installed with the code"
        raise ValueError(f"{path}: {text}; run from a checkout, or install it by pip install -e .")
    whole = read_yaml(path)
    for key, tree in whole.tree.items():
        where = whole.where((key,))
        if key not in SECTIONS:
            raise ValueError(f"{where}: unknown section {key!r}, {allowed(key, SECTIONS)}")
        if not isinstance(tree, dict | None):
            raise ValueError(f"{where}: {key}: got {tree!r}; write `key: value` lines below the section")
    lines = {part: {path[1:]: n for path, n in whole.lines.items() if path[0] == part} for part in SECTIONS}
    return [
        Layer(whole.source, whole.tree.get(part) or {}, lines[part], is_default=True) for part in ("common", section)
    ]


def parse_overrides(overrides: list[str]) -> list[Layer]:
    """Returns a layer for each `key=value` argument.

    Keys are dotted paths (`optim.lr=1e-4`). Values are one scalar (`3`, `true`, `null`, any text, nothing for the
    empty text) or, when they begin with a bracket, brace or quote, flow YAML: `[1, 2]`, `{a: 1}`, `"007"`.

    Errors: ValueError for an argument without `=`, an empty key, or broken flow YAML.
    """
    layers = []
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if text.startswith("-"):
            raise ValueError(f"{COMMAND_LINE}: {text!r} begins with a dash; write key=value without dashes")
        if not equals:
            raise ValueError(f"{COMMAND_LINE}: {text!r} has no `=`; write key=value, for example {text.strip()}=VALUE")
        if any(not part or part != part.strip() for part in parts):
            raise ValueError(f"{COMMAND_LINE}: {text!r} has an empty key; write key=value or group.key=value")
        tree = _parse_value(key, value.strip())
        for part in reversed(parts):
            tree = {part: tree}
        layers.append(Layer(COMMAND_LINE, tree))
    return layers


def is_bare(text: str) -> bool:
    """Returns whether a text needs no quotes in YAML, whatever stands around it."""
    return bool(text.isascii() and _BARE_TEXT.fullmatch(text) and _get_tag(text) == _TAG + "str")


def _parse_value(key: str, text: str) -> Any:
    if text[:1] and text[0] in "[{\"'":
        return _parse(text, f"{COMMAND_LINE}: {key}", {})
    # Everything else is one scalar as it stands: a prompt may hold `: ` or ` #`, and nothing is the empty text.
    return _scalar(_get_tag(text), text) if text else ""


def _get_tag(text: str) -> str:
    return _Loader("").resolve(yaml.ScalarNode, text, (True, False))


def _parse(text: str, source: str, lines: dict[tuple, int]) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _construct(node, source, (), lines)
    except (RecursionError, OverflowError, UnicodeError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else f"no text can hold that ({error})"
        raise ValueError(f"{source}: {what}; write plain values") from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).replace("\n", " ")
        raise ValueError(f"{place}: no valid YAML: {problem}; check quotes, brackets and indentation") from error


def _construct(node: yaml.Node, source: str, path: tuple, lines: dict[tuple, int]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.tag, node.value)
    if isinstance(node, yaml.SequenceNode):
        lines |= {(*path, index): item.start_mark.line + 1 for index, item in enumerate(node.value)}
        return [_construct(item, source, (*path, index), lines) for index, item in enumerate(node.value)]
    tree: dict[str, Any] = {}
    for key, value in node.value:
        line, inner = key.start_mark.line + 1, (*path, key.value)
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise ValueError(f"{source}:{line}: a key must be a word; write `key: value`")
        if key.value in tree:
            raise ValueError(f"{source}:{line}: {dotted(inner)} stands here and in line {lines[inner]}; remove one")
        lines[inner] = line
        tree[key.value] = _construct(value, source, inner, lines)
    return tree


def _scalar(tag: str, text: str) -> Any:
    kind = tag.removeprefix(_TAG)
    if kind in ("null", "bool"):
        return {"t": True, "f": False}.get(text[:1].lower())
    if kind == "int" and len(text) > MOST_DIGITS:
        return text
    return int(text) if kind == "int" else float(re.sub(r"\.([in])", r"\1", text.lower())) if kind == "float" else text

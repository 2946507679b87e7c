"""Layers: the plain, untyped trees a configuration is made of, each value with the place it was written at.

A layer comes from a YAML file (`read_defaults`, `read_recipe`), from the command line (`parse_overrides`), or from
Python (`Layer("seed flag", {"seed": 3})`). Types are the business of `utils.config`.

The dialect is YAML 1.2's core schema, not PyYAML's 1.1: `1e-4` is a float, `off` and `no` are strings, `16:9` and
`2024-01-01` too, `007` is 7. Anchors, tags and repeated keys are errors; inheritance is the key `base`:

* a recipe may say `base: other.yaml` (relative to itself); the base is an earlier layer, and may have a base again;
* the project-wide file is split into sections: `common:` applies to every command, `train:` and `infer:` to one each,
  so that it may hold keys that only one of the two root dataclasses knows.
"""

import difflib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SECTIONS = ("common", "train", "infer")
COMMAND_LINE = "command line"

_TAG = "tag:yaml.org,2002:"
_BARE_TEXT = re.compile(r"[A-Za-z_./][\w./+-]*")


class _Loader(yaml.SafeLoader):
    """The composer of PyYAML with the scalars of YAML 1.2, without anchors and tags."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor is not None:
            problem = "anchors and aliases are not used here; inherit with `base: other.yaml` or write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        if not isinstance(event, yaml.AliasEvent) and event.tag is not None:
            problem = f"the tag {event.tag!r} is not used here; write a plain value"
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

    def where(self, path: tuple) -> str:
        """Return `file:line` of the key path, or of its nearest parent; only the source's name without lines."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
        return self.source


def read_yaml(path: str | Path) -> Layer:
    """Return one YAML file as a layer, `base` not followed.

    Errors: ValueError for a missing file (with the nearest name in its folder), for broken YAML, for a repeated key,
    an anchor, a tag, or a file that is no mapping; each names the file and, where there is one, the line.
    """
    path = Path(path)
    source = str(path)
    if not path.is_file():
        raise ValueError(f"{source}: no such file{_similar_file(path)}; give the path of a YAML recipe")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 text ({error.reason}); save the recipe as UTF-8") from error
    lines: dict[tuple, int] = {}
    tree = _parse(text, source, lines)
    if not isinstance(tree, dict | None):
        raise ValueError(f"{source}: the top level is a {type(tree).__name__}; write `key: value` lines")
    return Layer(source, tree or {}, lines)


def read_recipe(path: str | Path) -> list[Layer]:
    """Return the layers of a recipe, its chain of `base` files first. ValueError for a circle of bases."""
    layers: list[Layer] = []
    seen: list[Path] = []
    current = Path(path)
    while True:
        layer = read_yaml(current)
        seen.append(current.resolve())
        base = layer.tree.pop("base", None)
        layers.insert(0, layer)
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ValueError(f"{layer.where(('base',))}: base: got {base!r}; write the name of one YAML file")
        current = Path(os.path.normpath(current.parent / base))
        if current.resolve() in seen:
            chain = " -> ".join(p.name for p in [*seen, current])
            raise ValueError(f"{layer.where(('base',))}: base: the recipes inherit in a circle ({chain}); remove one")


def read_defaults(path: str | Path, section: str) -> list[Layer]:
    """Return the layers `common` and `section` ("train" or "infer") of the project-wide file.

    Errors: ValueError for a top-level key that is no section, or a section that is no mapping.
    """
    if section not in SECTIONS[1:]:
        raise ValueError(f"section: got {section!r}, allowed: {', '.join(SECTIONS[1:])}")
    whole = read_yaml(path)
    for key, tree in whole.tree.items():
        where = whole.where((key,))
        if key not in SECTIONS:
            hint = " or ".join(difflib.get_close_matches(key, SECTIONS)) or "common"
            raise ValueError(
                f"{where}: unknown section {key!r}, allowed: {', '.join(SECTIONS)}; move the key below {hint}"
            )
        if not isinstance(tree, dict | None):
            raise ValueError(f"{where}: {key}: got {tree!r}; write `key: value` lines below the section")
    return [
        Layer(
            whole.source,
            whole.tree.get(part) or {},
            {path[1:]: line for path, line in whole.lines.items() if path[0] == part and len(path) > 1},
        )
        for part in ("common", section)
    ]


def parse_overrides(overrides: list[str]) -> Layer:
    """Return the layer of `key=value` arguments; a later one wins.

    Keys are dotted paths (`optim.lr=1e-4`). Values are one scalar (`3`, `true`, `null`, any text, nothing for the
    empty text) or, when they begin with a bracket, brace or quote, flow YAML: `[1, 2]`, `{a: 1}`, `"007"`.

    Errors: ValueError for an argument without `=`, an empty key, broken flow YAML, or two arguments that exclude each
    other (`a=1 a.b=2`).
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if text.startswith("-"):
            raise ValueError(f"{COMMAND_LINE}: {text!r} begins with a dash; write key=value without dashes")
        if not equals:
            raise ValueError(f"{COMMAND_LINE}: {text!r} has no `=`; write key=value, for example {text.strip()}=VALUE")
        if any(not part or part != part.strip() for part in parts):
            raise ValueError(f"{COMMAND_LINE}: {text!r} has an empty key; write key=value or group.key=value")
        _assign(tree, parts, _parse_value(key, value), text)
    return Layer(COMMAND_LINE, tree)


def merge(older: Any, newer: Any) -> Any:
    """Return plain values merged: mappings key by key, anything else replaced by the newer."""
    if not (isinstance(older, dict) and isinstance(newer, dict)):
        return newer
    return {**older, **{key: merge(older[key], value) if key in older else value for key, value in newer.items()}}


def format_value(value: Any) -> str:
    """Return a plain value as flow YAML on one line that reads back to an equal value."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        case list():
            return f"[{', '.join(map(format_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{format_value(k)}: {format_value(v)}" for k, v in value.items()) + "}"
        case str():
            if _is_bare(value):
                return value
            return yaml.safe_dump(value, default_style='"', width=math.inf).rstrip("\n")
    return repr(value)


def _is_bare(text: str) -> bool:
    return bool(text.isascii() and _BARE_TEXT.fullmatch(text) and _get_tag(text) == _TAG + "str")


def _get_tag(text: str) -> str:
    return _Loader("").resolve(yaml.ScalarNode, text, (True, False))


def _similar_file(path: Path) -> str:
    names = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" (is it {path.parent / near[0]}?)" if near else ""


def _assign(tree: dict[str, Any], parts: list[str], value: Any, text: str) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{COMMAND_LINE}: {text!r} contradicts an earlier {part}=...; keep one of the two")
    old = tree.get(parts[-1])
    if old is not None and isinstance(old, dict) != isinstance(value, dict):
        raise ValueError(f"{COMMAND_LINE}: {text!r} contradicts an earlier {parts[-1]} argument; keep one of the two")
    tree[parts[-1]] = merge(old, value)


def _parse_value(key: str, text: str) -> Any:
    text = text.strip()
    if text[:1] and text[0] in "[{\"'":
        return _parse(text, f"{COMMAND_LINE}: {key}", {})
    # Everything else is one scalar as it stands: a prompt may hold `: ` or ` #`, and nothing is the empty text.
    return _scalar(_get_tag(text), text) if text else ""


def _parse(text: str, source: str, lines: dict[tuple, int]) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _construct(node, source, (), lines)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).replace("\n", " ")
        raise ValueError(f"{place}: no valid YAML: {problem}; check quotes, brackets and indentation") from error


def _construct(node: yaml.Node, source: str, path: tuple, lines: dict[tuple, int]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.tag, node.value)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
        return [_construct(item, source, (*path, index), lines) for index, item in enumerate(node.value)]
    tree: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise ValueError(f"{source}:{line}: a key must be a word; write `key: value`")
        inner = (*path, key.value)
        if key.value in tree:
            dotted = ".".join(map(str, inner))
            raise ValueError(f"{source}:{line}: {dotted} stands here and in line {lines[inner]}; remove one")
        lines[inner] = line
        tree[key.value] = _construct(value, source, inner, lines)
    return tree


def _scalar(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text

"""Reads an ancestor's YAML as its own program did: YAML 1.1, anchors, the default file under it, wandb's dumps.

Their programs read by OmegaConf: `off`, `no`, `on` and `yes` are truth values, `017` is 15, `1:30` is 90, `10_000` and
`1e-5` are numbers, `<<` merges, `${key}` is another key's value. Ours are read by YAML 1.2 (utils/config/layer.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from scripts.migrate.old import Old
from utils.config.layer import SECTIONS

DEFAULT_FILE = "default_config.yaml"
LARGEST_FILE, LARGEST_TREE = 1_000_000, 100_000  # bytes; values, with those that aliases repeat
WANDB_KEYS = ("wandb_version", "_wandb")
_TAG = "tag:yaml.org,2002:"


class _OldLoader(yaml.SafeLoader):
    """PyYAML's YAML 1.1 as OmegaConf changes it: `1e-5` is a number, a date is a text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag != f"{_TAG}timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.anchored: set[int] = set()  # ids of the nodes that carry an anchor

    def compose_node(self, parent, index):
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self.anchored.add(id(node))
        return node


_OldLoader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def read_old(path: Path, defaults: Path | None = None) -> Old:
    """Returns an ancestor's recipe. defaults: the file that it lies over, instead of the one next to it.

    Errors: ValueError, with file and line, for what is no YAML or not a mapping of words.
    """
    old = _read(path)
    if "generation" in old.tree or "name" in (old.tree["trainer"] if _is_group(old.tree, "trainer") else ()):
        raise ValueError(f"{path} is a recipe of this project already; give it to train.py or inference.py")
    if _is_group(old.tree, "training"):
        raise ValueError(f"{path} is a recipe of minimal-self-forcing; docs/migrate.md says where its keys go")
    if set(WANDB_KEYS) & set(old.tree) or _is_dump(old.tree):
        old.tree = {key: node["value"] for key, node in old.tree.items() if key not in WANDB_KEYS and _is_value(node)}
        old.assume("a file that wandb wrote", "the `value` of each key is taken")
    if (lower := defaults or _find_defaults(path)) is None:
        return old
    under = _read(lower)
    if not defaults and set(under.tree) & set(SECTIONS):
        old.assume(str(lower), "is this project's own and is not read; --defaults names theirs")
        return old
    if defaults is None and old.is_longlive_generation:
        old.assume(str(lower), "is not read: LongLive's generation reads its own file alone")
        return old
    old.assume(str(lower), "is read under it, as the old programs do")
    old.tree = _merged(under.tree, old.tree)
    old.lines = under.lines | old.lines
    old.holders |= under.holders
    return old


def _find_defaults(path: Path) -> Path | None:
    """Returns the default file next to a recipe, or that of the `configs` folder that it lies in, or None."""
    folders = [path.parent, *(parent for parent in path.absolute().parents if parent.name == "configs")]
    files = (folder / DEFAULT_FILE for folder in folders)
    return next((file for file in files if file.is_file() and file.resolve() != path.resolve()), None)


def _read(path: Path) -> Old:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of an ancestor's YAML")
    content = path.read_bytes()
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path} has {len(content)} bytes; a recipe has at most {LARGEST_FILE}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    try:
        tree, lines, holders = _parse(text, path)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if mark else str(error).replace("\n", " ")
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where}: no valid YAML: {problem}; check quotes, brackets and indentation") from error
    except RecursionError as error:
        raise ValueError(f"{path}: groups lie too deep in one another; a recipe has two levels") from error
    if "${" in text:
        tree = _resolved(tree, path)
    return Old(tree, str(path), lines, holders)


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    loader = _OldLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ValueError(f"{path} is empty; give an ancestor's YAML")
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path}:1: the top level is a {node.id}; an ancestor's YAML has `key: value` lines")
        if _count(node, {}, set(), path) > LARGEST_TREE:
            raise ValueError(f"{path}: its aliases stand for more than {LARGEST_TREE} values; write them out")
        lines, holders = {}, set()
        for key, value in node.value:
            where = f"{path}:{key.start_mark.line + 1}"
            if key.tag == f"{_TAG}merge":
                continue
            if key.tag != f"{_TAG}str":
                raise ValueError(f"{where}: the key {key.value!r} is a value in YAML 1.1; write a word, or quote it")
            if key.value in lines:
                raise ValueError(f"{where}: {key.value} stands here and at {lines[key.value]}; remove one")
            lines[key.value] = where
            if isinstance(value, yaml.MappingNode):
                inner = {f"{key.value}.{k.value}": f"{path}:{k.start_mark.line + 1}" for k, _ in value.value}
                lines |= inner
            if _holds_anchor(value, loader.anchored):
                holders.add(key.value)
        return loader.construct_document(node), lines, holders
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: set[int], path: Path) -> int:
    """Returns how many values a node stands for, those behind aliases each time. Errors: ValueError for a circle."""
    if id(node) in above:
        line = node.start_mark.line + 1
        raise ValueError(f"{path}:{line}: an alias lies within its own anchor; write the values out")
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_count(child, known, above | {id(node)}, path) for child in children)
    return known[id(node)]


def _holds_anchor(node: yaml.Node, anchored: set[int]) -> bool:
    if id(node) in anchored:
        return True
    if isinstance(node, yaml.MappingNode):
        return any(_holds_anchor(value, anchored) for _, value in node.value)
    return isinstance(node, yaml.SequenceNode) and any(_holds_anchor(child, anchored) for child in node.value)


def _resolved(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the tree with every `${key}` replaced, as their programs see it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; write the value out") from error


def _is_group(tree: dict[str, Any], key: str) -> bool:
    return isinstance(tree.get(key), dict)


def _is_value(node: Any) -> bool:
    return isinstance(node, dict) and "value" in node and set(node) <= {"value", "desc"}


def _is_dump(tree: dict[str, Any]) -> bool:
    return bool(tree) and all(_is_value(node) for node in tree.values())


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns `over` on top of `under`, groups key by key, as OmegaConf merges."""
    both = {
        key: _merged(under[key], value) if isinstance(value, dict) and isinstance(under.get(key), dict) else value
        for key, value in over.items()
    }
    return {**under, **both}

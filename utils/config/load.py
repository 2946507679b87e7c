"""Typed configuration by OmegaConf: dataclasses <- project-wide YAML <- recipe <- `key=value`.

    layers = [*read_defaults("configs/default_config.yaml", "train"), *read_recipe(path), parse_overrides(arguments)]
    config, origins = load(TrainConfig, layers)
    render(config, origins)                       # the text of --print_config

OmegaConf's structured configs hold the types, merge the layers (groups key by key, lists whole), convert, and resolve
`${key}` and `${oc.env:NAME}`. This file adds what they lack: unions whose `name` chooses the dataclass (a layer that
changes the name drops what older layers said of the former arm), the origin of each value, the nearest spelling of an
unknown key, and that all problems are told at once, each with file, line and key.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from utils.config.field import (
    MISSING,
    Union,
    allowed,
    dotted,
    expand_paths,
    find_problems,
    raise_all,
    sentence,
    shorten,
)
from utils.config.layer import COMMAND_LINE, DEFAULT_ORIGIN, Layer
from utils.config.renamed import NO_OLD_KEYS, OldKeys, leaves

MOST_INTERPOLATIONS = 32  # in a configuration: texts that each name another one twice would grow without bound

_type_hints = functools.cache(typing.get_type_hints)

Piece = tuple[Layer, Any]  # what one layer says about the value in hand


def load(cls: type, layers: list[Layer], old: OldKeys = NO_OLD_KEYS) -> tuple[Any, dict[str, str]]:
    """Returns an object of the dataclass `cls`, and the origin (`file:line` or `command line`) of each given value.

    old: keys of earlier versions; they are refused with their new name.
    Errors: one ValueError that lists every unknown key, wrong type, missing value and unknown arm; or else everything
    that the methods `problems()` of the dataclasses tell.
    """
    loading = _Loading(layers, old)
    root = OmegaConf.structured(cls)
    loading.fill(root, [(layer, layer.tree) for layer in layers], ())
    loading.find_unresolved(root, ())
    raise_all("configuration", [*(loading.describe_unknown(*unknown) for unknown in loading.unknown), *loading.wrong])
    config = OmegaConf.to_object(root)
    expand_paths(config)
    raise_all("configuration", [loading.describe(path, text) for path, text in find_problems(config)])
    return config, loading.origins


def peek(layers: list[Layer], key: str) -> Any:
    """Returns the value that the layers give a dotted key, interpolated; None if none gives one that can be read.

    `load` tells what is wrong with it.
    """
    count_interpolations(layers)
    try:
        value = OmegaConf.select(OmegaConf.create(functools.reduce(_merge, (layer.tree for layer in layers), {})), key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return None


def count_interpolations(layers: list[Layer]) -> None:
    """Raises ValueError for so many that resolving them could take for ever."""
    count = sum(str(layer.tree).count("${") for layer in layers)
    if count > MOST_INTERPOLATIONS:
        sources = ", ".join(dict.fromkeys(layer.source for layer in layers))
        raise ValueError(f"{sources}: {count} times `${{`, allowed: {MOST_INTERPOLATIONS}; write values out")


class _Loading:
    """One pass over the tree of structured configs, which takes in what the layers say."""

    def __init__(self, layers: list[Layer], old: OldKeys):
        count_interpolations(layers)
        self.old = old
        self.sources = ", ".join(dict.fromkeys(layer.source for layer in layers)) or "no file"
        self.origins: dict[str, str] = {}
        self.keys: list[str] = []
        self.wrong: list[str] = []
        self.unknown: list[tuple[str, tuple, list[str]]] = []

    def fill(self, node: DictConfig, pieces: list[Piece], path: tuple, arm: bool = False) -> None:
        """Puts the values of the pieces, older ones first, into the structured config `node`."""
        fields = {f.name: f for f in _fields(node) if not (arm and f.name == "name")}
        known = ["name", *fields] if arm else list(fields)
        for layer, tree in pieces:
            for key in (key for key in tree if key not in fields):
                self.refuse_unknown(layer, (*path, key), tree[key], known)
        for name, field in fields.items():
            given = _newest([(layer, tree[name]) for layer, tree in pieces if name in tree])
            self.assign(node, name, field.metadata.get("one_of"), given, (*path, name))

    def assign(self, node: DictConfig, name: str, union: Union | None, pieces: list[Piece], path: tuple) -> None:
        """Puts the value of one field into its node: the arm of a union, a group, or a leaf."""
        inner = _without_none(_type_hints(OmegaConf.get_type(node))[name])
        old = None if OmegaConf.is_missing(node, name) else node[name]
        new = pieces[-1][1] if pieces else old
        is_group = union is not None or dataclasses.is_dataclass(inner)
        if union and (new == MISSING or (new is None and union.default is not None)):
            node[name] = MISSING
        elif is_group and pieces and _is_leaf(pieces[0][1], union is not None):
            advice = f"name={new}" if union else "KEY=VALUE"
            self.refuse(*pieces[0], path, f"a group of keys; write {dotted(path)}.{advice}")
        elif union and new is not None:
            self.take_arm(node, name, union, old, pieces, path)
        elif is_group and isinstance(new, dict | DictConfig):
            if old is None:
                node[name] = OmegaConf.structured(inner)
            self.fill(node[name], pieces, path)
        elif pieces:
            self.convert(node, name, inner, pieces, path)

    def take_arm(self, node: DictConfig, name: str, union: Union, arm: DictConfig | None, pieces, path: tuple) -> None:
        """Puts in the arm that the last `name` chooses, with the values since that choice. `arm`: the default's."""
        chosen, place = union.default, None
        if arm is not None and OmegaConf.get_type(arm) is not union.resolve(chosen):  # the default of an outer default
            chosen = union.get_name(OmegaConf.get_type(arm))
        kept: list[Piece] = []
        for layer, tree in pieces:
            if tree.get("name", chosen) != chosen:
                chosen, arm, kept = tree["name"], None, []
            if "name" in tree and not (layer.is_default and chosen == union.default):
                place = layer.where((*path, "name"))
            kept.append((layer, {key: value for key, value in tree.items() if key != "name"}))
        if place:
            self.origins[dotted((*path, "name"))] = place
        if chosen is None or chosen == MISSING:
            node[name] = MISSING
        elif not isinstance(chosen, str) or chosen not in union.table:
            self.wrong.append(f"{place}: {dotted(path)}.name: got {chosen!r}, {allowed(chosen, union.table)}")
        else:
            if arm is None:
                node[name] = OmegaConf.structured(union.resolve(chosen))
            OmegaConf.set_struct(node[name], False)  # or it refuses the key `name`, which the object gets as attribute
            node[name]["name"] = chosen
            self.fill(node[name], kept, path, arm=True)

    def convert(self, node: DictConfig, name: str, tp: Any, pieces: list[Piece], path: tuple) -> None:
        """Lets OmegaConf convert a value to its type, but refuses a number as text or truth value.

        What was written would be lost: 1.10 as text is 1.1.
        """
        if all(layer.is_default and _is_equal(value, node[name]) for layer, value in pieces):
            return
        for layer, value in pieces:
            self.note(layer, value, path)
        if value == MISSING:
            node[name] = MISSING
            return
        try:
            if tp is Any and not isinstance(value, dict):
                with open_dict(node):
                    del node[name]  # a list there would refuse a text
                    node[name] = None
            for _, value in pieces:
                OmegaConf.update(node, name, value)
            if "${" in str(value) or _keeps_kind(value, node[name]):
                return
            advice = (
                "put text in quotes (on the command line: key='\"text\"')" if "str" in str(tp) else "write such a value"
            )
        except (OmegaConfBaseException, TypeError) as error:
            advice = _first_line(error)
        name = tp.__name__ if isinstance(tp, type) and not typing.get_args(tp) else str(tp).replace("typing.", "")
        self.refuse(layer, value, path, f"{name}; {advice}")

    def note(self, layer: Layer, value: Any, path: tuple) -> None:
        """Records where a value, or each value of a group, was written."""
        if isinstance(value, dict) and value:
            for key, item in value.items():
                self.note(layer, item, (*path, key))
        else:
            names = re.findall(r"\$\{oc\.env:([^},]+)", str(value))
            self.origins[dotted(path)] = layer.where(path) + "".join(f" (environment: {name})" for name in names)

    def find_unresolved(self, node: DictConfig, path: tuple) -> None:
        """Notes mandatory values that are missing, and interpolations that lead nowhere."""
        unions = {field.name: field.metadata.get("one_of") for field in _fields(node)}
        for key in node:
            inner = (*path, key)
            self.keys.append(dotted(inner))
            where = self.origins.get(dotted(inner), self.sources)
            if OmegaConf.is_missing(node, key):
                name = dotted((*inner, "name") if unions.get(key) else inner)
                choice = f", one of {', '.join(unions[key].table)}," if unions.get(key) else ""
                text = f"mandatory value is missing; set it{choice} in a recipe or by {name}=VALUE on the command line"
                self.wrong.append(f"{where}: {name}: {text}")
                continue
            try:
                value = node[key]
                if dataclasses.is_dataclass(OmegaConf.get_type(value)) and not OmegaConf.is_interpolation(node, key):
                    self.find_unresolved(value, inner)
                elif OmegaConf.is_config(value):
                    OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                written = OmegaConf.to_container(node, resolve=False)[key]
                self.wrong.append(
                    f"{where}: {dotted(inner)}: got {shorten(written)}: {_first_line(error)}; write a value"
                )

    def refuse(self, layer: Layer, value: Any, path: tuple, expected: str) -> None:
        """Notes a value that its field does not take."""
        given = f"got {shorten(value)} ({type(value).__name__})"
        self.wrong.append(f"{layer.where(path)}: {dotted(path)}: {given}, allowed: {expected}")

    def refuse_unknown(self, layer: Layer, path: tuple, value: Any, known: list[str]) -> None:
        """Notes a key that is not in a group: with its new name, if it or those in it are of an earlier version."""
        inner = [path + rest for rest, _ in leaves(value)]
        told = {key: self.old.describe(dotted(key)) for key in inner}
        self.wrong += [f"{layer.where(key)}: unknown key {dotted(key)}; {text}" for key, text in told.items() if text]
        if not all(told.values()):
            self.unknown.append((layer.where(path), path, known))

    def describe_unknown(self, where: str, path: tuple, known: list[str]) -> str:
        key = str(path[-1])
        near = difflib.get_close_matches(key, known, n=1)
        elsewhere = [other for other in self.keys if other.split(".")[-1] == key and other != dotted(path)]
        guesses = [*(dotted((*path[:-1], name)) for name in near), *elsewhere[:2]]
        if guesses:
            return f"{where}: unknown key {dotted(path)}; did you mean {' or '.join(guesses)}?"
        return f"{where}: unknown key {dotted(path)}, allowed: {', '.join(known) or 'no key'}; remove or rename it"

    def describe(self, path: tuple, text: str) -> str:
        """Returns a problem with its key and the places of the values that it names.

        Where it names none that was given: what the command line says of the group, or all that is said of it.
        """
        group = f"{dotted(path)}." if path else ""
        inside = {key: place for key, place in self.origins.items() if f"{key}.".startswith(group)}
        own = [self.origins[key] for key in _heads(path) if key in self.origins] if text.startswith("is ") else []
        named = [place for key, place in inside.items() if re.search(rf"\b{re.escape(key.split('.')[-1])}\b", text)]
        typed = [place for place in inside.values() if place.startswith(COMMAND_LINE)]
        places = list(dict.fromkeys(own[:1] or named or typed or inside.values()))
        where = ", ".join(places[:4] + ["..."] * (len(places) > 4)) or DEFAULT_ORIGIN
        return f"{where}: {sentence(dotted(path), text)}"


def _heads(path: tuple) -> list[str]:
    return [dotted(path[:end]) for end in range(len(path), 0, -1)]


def _newest(pieces: list[Piece]) -> list[Piece]:
    # What is not a group replaces all older ones; null and ??? also erase what they replace.
    last = max((i for i, (_, value) in enumerate(pieces) if not isinstance(value, dict)), default=0)
    rest = pieces[last:]
    return rest[1:] if len(rest) > 1 and (rest[0][1] is None or rest[0][1] == MISSING) else rest


def _merge(old: Any, new: Any) -> Any:
    # A list may follow a group or a text; OmegaConf's own merge refuses that.
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merge(old[key], value) if key in old else value for key, value in new.items()}}


def _fields(node: DictConfig) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(OmegaConf.get_type(node)) if field.init]


def _without_none(tp: Any) -> Any:
    rest = [arg for arg in typing.get_args(tp) if arg is not type(None)]
    return rest[0] if typing.get_origin(tp) in (typing.Union, types.UnionType) and len(rest) == 1 else tp


def _is_leaf(value: Any, of_union: bool) -> bool:
    # What cannot stand for a group: neither keys nor null, nor the name of another group of the same type.
    named = isinstance(value, str) and ("${" in value or value == MISSING) and not of_union
    return not (isinstance(value, dict) or value is None or named)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_equal(value: Any, old: Any) -> bool:
    plain = OmegaConf.to_container(old) if OmegaConf.is_config(old) else old
    return repr(value) == repr(list(plain) if isinstance(plain, tuple) else plain)


def _keeps_kind(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return all(_keeps_kind(item, after[key]) for key, item in before.items())
    if isinstance(before, list):
        return all(_keeps_kind(old, new) for old, new in zip(before, after, strict=True))
    return isinstance(before, str | None) or type(after) in (type(before), {int: float}.get(type(before)))

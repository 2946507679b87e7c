"""Typed configuration: dataclasses <- project-wide YAML <- recipe <- `key=value`.

    layers = [*read_defaults("configs/default_config.yaml", "train"), *read_recipe(path), parse_overrides(arguments)]
    config, origins = load(TrainConfig, layers)
    render(config, origins)                       # the text of --print_config

Knobs are plain dataclasses with a type and usually a default for each field; the default `MISSING`, or none, makes a
field mandatory. A field whose dataclass is chosen by name is a tagged union:

    SOLVERS = {"euler": "pipeline.solver:EulerConfig", "unipc": "pipeline.solver:UniPCConfig"}
    solver: object = one_of(SOLVERS, default="euler")

In YAML its node holds `name` beside the fields of that arm, and the object carries the attribute `name`. Where a later
layer changes the name, the keys that older layers gave to the former arm are dropped.

The layers are laid over each other while walking the dataclasses, since only the types tell a union's `name` from an
ordinary field of that name. Mappings merge key by key, lists are replaced whole. Single values go through OmegaConf's
structured merge for their type. All problems of a configuration are reported at once, each with file, line and key;
then every dataclass that has a method `check()` is asked, inner ones first: it raises ValueError for combinations
that cannot work. `utils.config_layer` has the sections (`common`, `train`, `infer`), `base` and the YAML dialect.
"""

import dataclasses
import difflib
import typing
from typing import Any

from utils.config_field import (
    MISSING,
    Union,
    allowed,
    convert,
    get_default,
    holds_dataclass,
    one_of,
    type_hints,
    with_name,
    without_none,
)
from utils.config_layer import Layer, merge, parse_overrides, read_defaults, read_recipe, read_yaml
from utils.config_text import DEFAULT_ORIGIN, config_hash, render, to_dict

__all__ = [
    "MISSING",
    "Layer",
    "config_hash",
    "load",
    "one_of",
    "parse_overrides",
    "read_defaults",
    "read_recipe",
    "read_yaml",
    "render",
    "to_dict",
]

Piece = tuple[Layer, Any]  # what one layer says about the node in hand


def load(cls: type, layers: list[Layer]) -> tuple[Any, dict[str, str]]:
    """Return an object of the dataclass `cls` and the origin of each value.

    Origins: dotted key -> `file:line`, the layer's source (`command line`), or `default`.
    Errors: one ValueError that lists every unknown key (with the nearest spelling), wrong type, missing value and
    unknown arm; or else that of the first failed `check()`, with the key and the origins of its values.
    """
    walk = _Walk([layer.source for layer in layers])
    config = walk.build(cls, [(layer, layer.tree) for layer in layers], None, ())
    walk.raise_problems()
    for path, node in walk.built:
        check = getattr(node, "check", None)
        if callable(check):
            walk.run(check, path, type(node))
            walk.raise_problems()
    return config, walk.origins


class _Walk:
    """One pass over the dataclass tree, later pieces over earlier ones; objects are built bottom up."""

    def __init__(self, sources: list[str]):
        self.sources = ", ".join(dict.fromkeys(sources)) or "no file"
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []
        self.unknown: list[tuple[str, tuple, list[str]]] = []
        self.built: list[tuple[tuple, Any]] = []

    def build(self, cls: type, pieces: list[Piece], base: Any, path: tuple, arm: str | None = None) -> Any:
        """Return an object of `cls`; values in no piece come from the object `base`, else from the class."""
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init and not (arm and f.name == "name")}
        found = len(self.problems) + len(self.unknown)
        for layer, tree in pieces:
            known = ["name", *fields] if arm else list(fields)
            self.unknown += [(layer.where((*path, key)), (*path, key), known) for key in tree if key not in fields]
        values = {}
        for name, field in fields.items():
            tp = type_hints(cls)[name]
            given = [(layer, tree[name]) for layer, tree in pieces if name in tree]
            default = get_default(field, tp, base)
            values[name] = self.value(tp, field.metadata.get("one_of"), given, default, (*path, name))
        if len(self.problems) + len(self.unknown) > found:
            return None
        if arm and any(field.name == "name" and field.init for field in dataclasses.fields(cls)):
            values["name"] = arm
        node = self.run(lambda: cls(**values), path, cls)
        if node is not None:
            self.built.append((path, with_name(node, arm) if arm else node))
        return node

    def value(self, tp: Any, union: Union | None, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return the value of one field or entry: a leaf, a container, an arm or a dataclass."""
        inner, optional = without_none(tp)
        if union is None and not holds_dataclass(inner):
            return self.leaf(tp, pieces, default, path)
        self.note(path, pieces)
        last = pieces[-1][1] if pieces else default
        if last is None and optional:
            return None
        if (pieces and last is None) or (last == MISSING and (pieces or not union)):
            return self.missing(pieces, union, path)
        while any(value is None for _, value in pieces):  # null erases what older layers said
            pieces = pieces[1:]
        pieces = [piece for piece in pieces if piece[1] != MISSING]
        container = typing.get_origin(inner)
        if container in (list, tuple):
            return self.items(container, typing.get_args(inner), union, pieces, default, path)
        if any(not isinstance(value, dict) for _, value in pieces):
            return self.no_mapping(pieces, union if container is not dict else None, path)
        if container is dict:
            return self.entries(typing.get_args(inner)[1], union, pieces, default, path)
        self.origins.pop(_dotted(path), None)
        if union:
            return self.arm(union, pieces, default, path)
        return self.build(inner, pieces, default if dataclasses.is_dataclass(default) else None, path)

    def leaf(self, tp: Any, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return a value that holds no dataclass, converted to its type."""
        value = default
        keys = default if isinstance(default, dict) else ()
        self.origins |= {_dotted((*path, key)): DEFAULT_ORIGIN for key in keys}
        for layer, given in pieces:
            keys = given if isinstance(given, dict) else ()
            self.origins |= {_dotted((*path, key)): layer.where((*path, key)) for key in keys}
            value = merge(value, given)
        origin = self.note(path, pieces)
        if isinstance(value, str) and value == MISSING:
            return self.missing(pieces, None, path)
        try:
            return convert(tp, value)
        except ValueError as error:
            self.problems.append(f"{origin}: {_dotted(path)}: {error}")
            return None

    def arm(self, union: Union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return the object of the arm that the last `name` chooses, from the pieces since that choice."""
        is_object = dataclasses.is_dataclass(default)
        name, base = (union.get_name(default), default) if is_object else (default, None)
        kept: list[Piece] = []
        origin = DEFAULT_ORIGIN
        for layer, tree in pieces:
            if "name" in tree:
                if tree["name"] != name:
                    kept, base = [], None
                name, origin = tree["name"], layer.where((*path, "name"))
            kept.append((layer, {key: value for key, value in tree.items() if key != "name"}))
        self.origins[_dotted((*path, "name"))] = origin
        if name is None or name == MISSING:
            return self.missing(pieces, union, path)
        if not isinstance(name, str) or name not in union.table:
            self.problems.append(f"{origin}: {_dotted(path)}.name: got {name!r}, {allowed(name, union.table)}")
            return None
        return self.build(union.resolve(name), kept, base, path, arm=name)

    def items(self, container, args: tuple, union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return a list or tuple whose entries hold dataclasses; the last piece replaces all earlier ones."""
        given = pieces[-1][1] if pieces else default
        if given is None or given == MISSING:
            return self.missing(pieces, None, path)
        where = self.note(path, pieces)
        if not isinstance(given, list | tuple):
            self.problems.append(f"{where}: {_dotted(path)}: got {given!r}, allowed: a list; write lines with `- `")
            return None
        types = args if container is tuple and args[-1] is not ... else args[:1] * len(given)
        if len(types) != len(given):
            self.problems.append(f"{where}: {_dotted(path)}: got {len(given)} entries, allowed: {len(types)}")
            return None
        values = []
        for index, (tp, item) in enumerate(zip(types, given, strict=True)):
            piece, item_default = ([(pieces[-1][0], item)], _nothing(union)) if pieces else ([], item)
            values.append(self.value(tp, union, piece, item_default, (*path, index)))
        return container(values)

    def entries(self, tp: Any, union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return a dict whose values hold dataclasses, merged key by key."""
        if not pieces and (default is None or default == MISSING):
            return self.missing(pieces, None, path)
        default = default if isinstance(default, dict) else {}
        keys = dict.fromkeys([*default, *(key for _, tree in pieces for key in tree)])
        result = {}
        for key in keys:
            given = [(layer, tree[key]) for layer, tree in pieces if key in tree]
            result[key] = self.value(tp, union, given, default.get(key, _nothing(union)), (*path, key))
        return result

    def note(self, path: tuple, pieces: list[Piece]) -> str:
        """Record and return where the value at `path` comes from."""
        origin = pieces[-1][0].where(path) if pieces else DEFAULT_ORIGIN
        self.origins[_dotted(path)] = origin
        return origin

    def missing(self, pieces: list[Piece], union: Union | None, path: tuple) -> None:
        where = pieces[-1][0].where(path) if pieces else self.sources
        key = _dotted((*path, "name") if union else path)
        choice = f", one of {', '.join(union.table)}," if union else ""
        text = f"mandatory value is missing; set it{choice} in a recipe or by {key}=VALUE on the command line"
        self.problems.append(f"{where}: {key}: {text}")

    def no_mapping(self, pieces: list[Piece], union: Union | None, path: tuple) -> None:
        layer, value = next(piece for piece in pieces if not isinstance(piece[1], dict))
        key = _dotted(path)
        advice = f"write {key}.name={value}" if union else f"write {key}.KEY=VALUE"
        self.problems.append(f"{layer.where(path)}: {key}: got {value!r}, allowed: a group of keys; {advice}")

    def run(self, function: typing.Callable[[], Any], path: tuple, cls: type) -> Any:
        """Return what the function returns; a ValueError becomes a problem with the key and its values' origins."""
        try:
            return function()
        except ValueError as error:
            inside = [o for key, o in self.origins.items() if not path or f"{key}.".startswith(_dotted(path) + ".")]
            given = [origin for origin in dict.fromkeys(inside) if origin != DEFAULT_ORIGIN]
            where = ", ".join(given[:4] + ["..."] * (len(given) > 4)) or self.sources
            self.problems.append(f"{where}: {_dotted(path) or cls.__name__}: {error}")

    def raise_problems(self) -> None:
        lines = [*(self.describe_unknown(*unknown) for unknown in self.unknown), *self.problems]
        if lines:
            head = f"{len(lines)} problems in the configuration\n" if len(lines) > 1 else ""
            raise ValueError(head + "\n".join(lines))

    def describe_unknown(self, where: str, path: tuple, known: list[str]) -> str:
        key = str(path[-1])
        near = difflib.get_close_matches(key, known, n=1)
        elsewhere = [other for other in self.origins if other.split(".")[-1] == key and other != _dotted(path)]
        guesses = [*(_dotted((*path[:-1], name)) for name in near), *elsewhere[:2]]
        if guesses:
            return f"{where}: unknown key {_dotted(path)}; did you mean {' or '.join(guesses)}?"
        return f"{where}: unknown key {_dotted(path)}, allowed: {', '.join(known) or 'no key'}; remove or rename it"


def _nothing(union: Union | None) -> str | None:
    # An entry of a list or dict has no default of its own: a union needs its name, a dataclass starts from its class.
    return MISSING if union else None


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))

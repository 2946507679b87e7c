"""Typed configuration: dataclasses <- project-wide YAML <- recipe <- `key=value`.

    layers = [*read_defaults("configs/default_config.yaml", "train"), *read_recipe(path), parse_overrides(argv)]
    config, origins = load(TrainConfig, layers)

Knobs are plain dataclasses with a type and usually a default for each field; `MISSING` as default makes a field
mandatory. A field whose dataclass is chosen by name is a tagged union:

    SOLVERS = {"euler": "pipeline.solver:EulerConfig", "unipc": UniPCConfig}
    solver: object = one_of(SOLVERS, default="euler")          # or Solver | None, list[object], dict[str, object]

In YAML its node holds `name` beside the fields of that arm; the object carries the attribute `name`. Where a later
layer changes the name, the keys that older layers gave the former arm are dropped, and only those.

The layers are laid over each other while walking the dataclasses, since only the types tell a union's `name` from an
ordinary field of that name. Mappings merge key by key, lists are replaced whole. Single values go through OmegaConf's
structured merge for their type. All problems of a configuration are reported at once, each with file, line and key;
then every dataclass that has a method `check()` is asked, inner ones first (it raises ValueError for combinations
that cannot work). The layers themselves and the YAML dialect: `utils.config_layer`; printing: `utils.config_text`.
"""

import dataclasses
import difflib
import enum
import functools
import importlib
import types
import typing
from typing import Any

from utils.config_layer import Layer, merge

MISSING = "???"  # OmegaConf's mark of a mandatory value; not imported, since `--help` needs no OmegaConf
DEFAULT_ORIGIN = "default"

Piece = tuple[Layer, Any]  # what one layer says about the node in hand


@dataclasses.dataclass(frozen=True)
class Union:
    """A table of arms, name -> dataclass or "module:Class", and the default name (MISSING: none, None: no arm)."""

    table: dict[str, Any]
    default: str | None = MISSING

    def resolve(self, name: str) -> type:
        """Return the arm's dataclass; a class that is none stands for its attribute `Config`."""
        entry = self.table[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = vars(importlib.import_module(module))[attribute]
        return entry if dataclasses.is_dataclass(entry) else entry.Config

    def name_of(self, value: Any) -> str:
        """Return the name of an arm's object. ValueError if it was made without `load` and the class has two names."""
        given = vars(value).get("name")
        if given in self.table and isinstance(value, self.resolve(given)):
            return given
        names = [name for name in self.table if self.resolve(name) is type(value)]
        if len(names) != 1:
            raise ValueError(
                f"{type(value).__name__} has {len(names)} names in the table {sorted(self.table)}; "
                f"set its attribute `name` to the one you mean"
            )
        return names[0]

    def make_default(self) -> Any:
        """Return the default arm with its own defaults, as a dataclass made in Python gets it."""
        return _with_name(self.resolve(self.default)(), self.default)


def one_of(table: dict[str, Any], default: str | None = MISSING) -> Any:
    """Return a dataclass field whose value is the config dataclass that `table` gives for its `name`.

    table: name -> config dataclass, or a class with an attribute `Config`, or "module:Class" of either (imported only
    when chosen). default: a name, None (the field's type must allow it) or nothing, which makes the choice mandatory.
    In a field of type `list[...]` or `dict[str, ...]` each entry is such a union, and the default is empty.
    """
    if default not in (None, MISSING) and default not in table:
        raise ValueError(f"one_of: got default {default!r}, allowed: {', '.join(table)}, None or nothing")
    union = Union(table, default)
    if default in (None, MISSING):
        return dataclasses.field(default=default, metadata={"one_of": union})
    return dataclasses.field(default_factory=union.make_default, metadata={"one_of": union})


def load(cls: type, layers: list[Layer]) -> tuple[Any, dict[str, str]]:
    """Return an object of the dataclass `cls` and the origin of each leaf: dotted key -> file:line, source or default.

    Errors: ValueError that lists every unknown key (with the nearest spelling), wrong type, missing value and unknown
    arm, or the first failed `check()`.
    """
    walk = _Walk([layer.source for layer in layers])
    config = walk.build(cls, [(layer, layer.tree) for layer in layers], None, ())
    walk.raise_problems()
    for path, node in walk.built:
        if callable(vars(type(node)).get("check") or getattr(type(node), "check", None)):
            walk.run_check(path, node)
    return config, walk.origins


class _Walk:
    """One pass over the dataclass tree: collects origins and problems, builds the objects bottom up."""

    def __init__(self, sources: list[str]):
        self.sources = list(dict.fromkeys(sources))
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []
        self.unknown: list[tuple[str, tuple, list[str]]] = []
        self.built: list[tuple[tuple, Any]] = []

    def build(self, cls: type, pieces: list[Piece], base: Any, path: tuple, arm: str | None = None) -> Any:
        """Return an object of `cls`; values not given come from the object `base`, else from the class."""
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init and not (arm and f.name == "name")}
        found = len(self.problems) + len(self.unknown)
        for layer, tree in pieces:
            for key in tree.keys() - fields.keys():
                known = ["name", *fields] if arm else list(fields)
                self.unknown.append((layer.where((*path, key)), (*path, key), known))
        values = {
            name: self.value(
                _hints(cls)[name],
                field.metadata.get("one_of"),
                [(layer, tree[name]) for layer, tree in pieces if name in tree],
                _default(field, _hints(cls)[name], base),
                (*path, name),
            )
            for name, field in fields.items()
        }
        if len(self.problems) + len(self.unknown) > found:
            return None
        try:
            node = cls(**values)
        except ValueError as error:
            self.problems.append(self.describe(path, cls, error))
            return None
        self.built.append((path, node))
        return _with_name(node, arm) if arm else node

    def value(self, tp: Any, union: Union | None, pieces: list[Piece], default: Any, path: tuple) -> Any:
        """Return the value of one field or entry: a leaf, a container, an arm or a dataclass."""
        inner, optional = _without_none(tp)
        container = typing.get_origin(inner) if typing.get_origin(inner) in (list, tuple, dict) else None
        if union is None and not _holds_dataclass(inner):
            return self.leaf(tp, pieces, default, path)
        if pieces and pieces[-1][1] in (None, MISSING) and not (optional and pieces[-1][1] is None):
            return self.refuse_nothing(pieces[-1], union, path)
        if (pieces[-1][1] if pieces else default) is None and optional:
            self.note(path, pieces)
            return None
        while any(value is None for _, value in pieces):  # a null also erases what was said before it
            pieces = pieces[1:]
        if container is dict:
            return self.entries(typing.get_args(inner)[1], union, pieces, default, path)
        if container:
            return self.items(container, typing.get_args(inner), union, pieces, default, path)
        pieces = self.mappings(pieces, path, union)
        return self.arm(union, pieces, default, path) if union else self.build(inner, pieces, default, path)

    def arm(self, union: Union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        name = default if default is None or isinstance(default, str) else union.name_of(default)
        base = None if isinstance(default, str) else default
        origin, kept = DEFAULT_ORIGIN, []
        for layer, tree in pieces:
            if "name" in tree:
                if tree["name"] != name:
                    kept, base = [], None
                name, origin = tree["name"], layer.where((*path, "name"))
            kept.append((layer, {key: value for key, value in tree.items() if key != "name"}))
        self.origins[_dotted((*path, "name"))] = origin
        if name is None or name == MISSING:
            return self.refuse_nothing(pieces[-1] if pieces else None, union, path)
        if not isinstance(name, str) or name not in union.table:
            self.problems.append(f"{origin}: {_dotted(path)}.name: got {name!r}, {_allowed(name, union.table)}")
            return None
        return self.build(union.resolve(name), kept, base, path, arm=name)

    def items(self, container, args, union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        self.note(path, pieces)
        if pieces and not isinstance(pieces[-1][1], list | tuple):
            self.wrong(pieces[-1], path, "a list; write `key: [..]` or lines that begin with `- `")
            return None
        if not pieces and default in (None, MISSING) and not union:
            return self.refuse_nothing(None, None, path)
        given = pieces[-1][1] if pieces else [] if default in (None, MISSING) else default
        item_types = args if container is tuple and args[-1] is not ... else [args[0]] * len(given)
        if len(item_types) != len(given):
            self.wrong(pieces[-1], path, f"{len(item_types)} entries")
            return None
        values = []
        for index, (item_type, item) in enumerate(zip(item_types, given, strict=True)):
            piece, item_default = ([(pieces[-1][0], item)], None) if pieces else ([], item)
            item_default = union.default if union and pieces else item_default
            values.append(self.value(item_type, union, piece, item_default, (*path, index)))
        return container(values)

    def entries(self, tp: Any, union, pieces: list[Piece], default: Any, path: tuple) -> Any:
        self.note(path, pieces)
        if not pieces and default in (None, MISSING) and not union:
            return self.refuse_nothing(None, None, path)
        default = {} if default in (None, MISSING) else default
        pieces = self.mappings(pieces, path, None)
        keys = dict.fromkeys([*default, *(key for _, tree in pieces for key in tree)])
        fallback = union.default if union else None
        return {
            key: self.value(
                tp,
                union,
                [(layer, tree[key]) for layer, tree in pieces if key in tree],
                default.get(key, fallback),
                (*path, key),
            )
            for key in keys
        }

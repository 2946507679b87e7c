"""What a configuration field may hold: tagged unions (`one_of`), the shape of a type, a value converted to its type."""

import dataclasses
import difflib
import enum
import functools
import importlib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value; not imported, since `--help` needs no OmegaConf


@dataclasses.dataclass(frozen=True)
class Union:
    """A table of arms and the default name (None: no arm, MISSING: the name is mandatory)."""

    table: dict[str, Any]
    default: str | None

    def resolve(self, name: str) -> type:
        """Return the config dataclass of an arm; imports its module if the table gives text."""
        entry = self.table[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = vars(importlib.import_module(module))[attribute]
        return entry if dataclasses.is_dataclass(entry) else entry.Config

    def get_name(self, value: Any) -> str:
        """Return the name of an arm's object; ValueError if it carries none and its class has not just one."""
        given = vars(value).get("name")
        if given in self.table:
            return given
        names = [name for name in self.table if self.resolve(name) is type(value)]
        if len(names) != 1:
            found = f"{len(names)} of the names {', '.join(self.table)}"
            raise ValueError(f"{type(value).__name__} stands for {found}; set its attribute `name` to one of them")
        return names[0]


def one_of(table: dict[str, Any], default: str | None | Callable[[], Any] = MISSING) -> Any:
    """Return a dataclass field whose value is the config dataclass that `table` gives for its `name`.

    table: name -> config dataclass, or a class with an attribute `Config`, or "module:Class" of either (imported only
    when chosen). Config dataclasses must not use `slots`.
    default: a name; None, if the field's type allows it; nothing, which makes the name mandatory; or a factory such as
    `list`, for a field of type `list[...]` or `dict[str, ...]`, whose entries are such unions each.
    """
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"one_of": Union(table, MISSING)})
    union = Union(table, default)
    if default in (None, MISSING):
        return dataclasses.field(default=default, metadata={"one_of": union})
    if default not in table:
        raise ValueError(f"one_of: got the default {default!r}, {allowed(default, table)}")
    return dataclasses.field(
        default_factory=lambda: with_name(union.resolve(default)(), default), metadata={"one_of": union}
    )


def with_name(node: Any, name: str) -> Any:
    """Return the arm's object with its attribute `name` set, also where the dataclass is frozen or lacks the field."""
    object.__setattr__(node, "name", name)
    return node


def get_default(field: dataclasses.Field, tp: Any, base: Any) -> Any:
    """Return a field's default: from the object `base` if there is one, a union's default as its bare name.

    None stands for "whatever the class says" where the factory is the nested dataclass itself: it need not be
    constructible, since its mandatory values may come from a layer.
    """
    if base is not None:
        return getattr(base, field.name)
    union = field.metadata.get("one_of")
    if union and union.default is not MISSING:
        return union.default
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING:
        return None if dataclasses.is_dataclass(tp) else MISSING
    return None if field.default_factory is tp else field.default_factory()


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass."""
    return typing.get_type_hints(cls)


def without_none(tp: Any) -> tuple[Any, bool]:
    """Return (the type without `| None`, whether None is allowed). A union of several types stays whole."""
    if tp is Any:
        return tp, True
    if typing.get_origin(tp) not in (typing.Union, types.UnionType):
        return tp, tp is type(None)
    rest = [arg for arg in typing.get_args(tp) if arg is not type(None)]
    return (rest[0] if len(rest) == 1 else tp), len(rest) < len(typing.get_args(tp))


def holds_dataclass(tp: Any) -> bool:
    """Return whether a dataclass occurs in a type, also inside list, tuple, dict or Optional."""
    return dataclasses.is_dataclass(tp) or any(holds_dataclass(arg) for arg in typing.get_args(tp))


def convert(tp: Any, value: Any) -> Any:
    """Return a plain value converted to a leaf type by OmegaConf's structured merge.

    Stricter than OmegaConf: a number or truth value is no text, a number is no truth value (what was written would be
    lost: 1.10 as text is 1.1). Errors: ValueError that says what was given and what is allowed.
    """
    if "${" in str(value):
        raise ValueError(f"got {value!r}, allowed: no `${{...}}`; write the value out, nothing is interpolated")
    if type(value) is tp and tp in (bool, int, float, str):
        return value  # nothing to convert; spares the common case 0.7 ms
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    value = _with_tuples(tp, value)
    try:
        converted = OmegaConf.to_object(OmegaConf.merge(_slot(tp), {"value": value})).value
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            raise ValueError(f"got {value!r}, allowed: no {MISSING!r} inside; write the value out") from error
        choices = _choices(tp)
        expected = allowed(value, choices) if choices else f"allowed: {type_name(tp)}; write such a value"
        raise ValueError(f"got {value!r} ({type(value).__name__}), {expected}") from error
    if not _keeps_kind(value, converted):
        quote = "; put text in quotes (on the command line: key='\"text\"')" if "str" in type_name(tp) else ""
        raise ValueError(f"got {value!r} ({type(value).__name__}), allowed: {type_name(tp)}{quote}")
    return converted


def type_name(tp: Any) -> str:
    """Return a type as a reader writes it: `int`, `list[str]`, `float | None`."""
    return tp.__name__ if isinstance(tp, type) and not typing.get_args(tp) else str(tp).replace("typing.", "")


def allowed(given: Any, names: Iterable[str]) -> str:
    """Return "allowed: ..." with all names and the nearest to what was given."""
    names = [str(name) for name in names]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"allowed: {', '.join(names)}; " + (f"did you mean {near[0]}?" if near else "write one of them")


@functools.cache
def _slot(tp: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", tp, MISSING)]))


def _choices(tp: Any) -> list[str]:
    tp, _ = without_none(tp)
    if typing.get_origin(tp) is typing.Literal:
        return [str(choice) for choice in typing.get_args(tp)]
    return list(tp.__members__) if isinstance(tp, enum.EnumMeta) else []


def _with_tuples(tp: Any, value: Any) -> Any:
    # OmegaConf turns a list into a tuple at the top of a field only, not inside a list or a dict.
    tp, _ = without_none(tp)
    args = typing.get_args(tp)
    match typing.get_origin(tp), value:
        case (origin, list() | tuple()) if origin in (list, tuple) and len(set(args) - {...}) == 1:
            return origin(_with_tuples(args[0], item) for item in value)
        case (origin, dict()) if origin is dict:
            return {key: _with_tuples(args[1], item) for key, item in value.items()}
    return value


def _keeps_kind(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return all(_keeps_kind(item, after[key]) for key, item in before.items())
    if isinstance(before, list | tuple):
        return all(_keeps_kind(old, new) for old, new in zip(before, after, strict=True))
    if isinstance(before, str | PurePath | enum.Enum) or before is None:
        return True
    return type(before) is type(after) or (type(before), type(after)) == (int, float)

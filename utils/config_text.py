"""A configuration as plain tree, as text with the origin of each value, and as a hash."""

import dataclasses
import enum
import hashlib
import json
from pathlib import PurePath
from typing import Any

from utils.config_field import Union
from utils.config_layer import format_value

DEFAULT_ORIGIN = "default"

_COMMENT_COLUMN = 40


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as a plain tree (dicts, lists, scalars) that `load` turns back into an equal object.

    A union's node begins with its `name`; paths become text, enum members their name.
    """
    return {
        field.name: _plain(vars(config)[field.name], field.metadata.get("one_of"))
        for field in dataclasses.fields(config)
        if field.init
    }


def config_hash(config: Any) -> str:
    """Return 12 hex digits that depend only on the values, not on their origins or the order of keys."""
    text = json.dumps(to_dict(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def render(config: Any, origins: dict[str, str]) -> str:
    """Return the configuration as YAML that reads back to the same values, each with a comment of its origin."""
    return "\n".join(_lines(to_dict(config), origins, "")) + "\n"


def _plain(value: Any, union: Union | None) -> Any:
    if dataclasses.is_dataclass(value):
        name = {"name": union.get_name(value)} if union else {}
        return {**name, **to_dict(value), **name}
    if isinstance(value, list | tuple):
        return [_plain(item, union) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, union) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, PurePath) else value


def _lines(tree: dict[str, Any], origins: dict[str, str], path: str, indent: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else str(key)
        head = f"{indent}{format_value(key)}:"
        if isinstance(value, dict) and value:
            lines += [head, *_lines(value, origins, inner, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(item, dict) and item for item in value):
            lines.append(head)
            for index, item in enumerate(value):
                first, *rest = _lines(item, origins, f"{inner}.{index}", indent + "  ")
                lines += [f"{indent}- {first[len(indent) + 2 :]}", *rest]
        else:
            text = f"{head} {format_value(value)}"
            lines.append(f"{text:<{_COMMENT_COLUMN}}  # {_origin(origins, inner)}")
    return lines


def _origin(origins: dict[str, str], path: str) -> str:
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path, DEFAULT_ORIGIN)

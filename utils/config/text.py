"""A configuration as plain tree, as text with the origin of each value, and as a hash."""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

import yaml

from utils.config.field import Union, values
from utils.config.layer import DEFAULT_ORIGIN, is_bare

_COMMENT_COLUMN = 40


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as a plain tree (dicts, lists, scalars) that `load` turns back into an equal object,
    unless a text holds `${`, which `load` would resolve.

    A union's node begins with its `name`.
    """
    unions = {field.name: field.metadata.get("one_of") for field in dataclasses.fields(config)}
    return {name: _plain(value, unions[name]) for name, value in values(config).items()}


def config_hash(config: Any) -> str:
    """Returns 12 hex digits that depend only on the values, not on their origins or the order of keys."""
    text = json.dumps(to_dict(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def render(config: Any, origins: dict[str, str]) -> str:
    """Returns the configuration as YAML that reads back to the same values, each with a comment of its origin."""
    return "\n".join(_lines(to_dict(config), origins, "")) + "\n"


def format_value(value: Any) -> str:
    """Returns a plain value as flow YAML on one line that reads back to an equal value; `${` stays text."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        case list() | tuple():
            return f"[{', '.join(map(format_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{_quoted(str(k))}: {format_value(v)}" for k, v in value.items()) + "}"
        case str():
            return _quoted(escape(value))
    return repr(value)


def escape(text: str) -> str:
    """Returns text that OmegaConf resolves to the text itself."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _quoted(text: str) -> str:
    return text if is_bare(text) else yaml.safe_dump(text, default_style='"', width=math.inf).rstrip("\n")


def _plain(value: Any, union: Union | None) -> Any:
    if dataclasses.is_dataclass(value):
        name = {"name": union.get_name(value)} if union else {}
        return {**name, **to_dict(value), **name}
    if isinstance(value, list | tuple):
        return [_plain(item, None) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, None) for key, item in value.items()}
    return value


def _lines(tree: dict[str, Any], origins: dict[str, str], path: str, indent: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else str(key)
        head = f"{indent}{_quoted(str(key))}:"
        if isinstance(value, dict) and value:
            lines += [head, *_lines(value, origins, inner, indent + "  ")]
        else:
            text = f"{head} {format_value(value)}"
            lines.append(f"{text:<{_COMMENT_COLUMN}}  # {_origin(origins, inner)}")
    return lines


def _origin(origins: dict[str, str], path: str) -> str:
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path, DEFAULT_ORIGIN)

"""Turns an error of our loader, which points into the migrated recipe, into one of the ancestor's file and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.migrate.old import Old
from utils.config.field import dotted
from utils.config.layer import read_yaml

Maker = Callable[[Old], dict[str, Any]]


def explain(error: ValueError, migrated: Path, old: Old, maker: Maker) -> ValueError:
    """Returns the error with each place in `migrated` replaced by the key of theirs that was put there.

    migrated: with one key a line. maker: makes our tree of theirs. A key is found by leaving it out and seeing what
    changes.
    """
    goals = find_goals(old, maker)
    lines = {number: path for path, number in read_yaml(migrated).lines.items()}
    place = re.compile(rf"\S*{re.escape(migrated.name)}(?::(\d+))?")

    def name(match: re.Match) -> str:
        ours = dotted(lines.get(int(match[1] or 0), ()))
        theirs = [key for key, places in goals.items() if any(_meet(ours, place) for place in places)]
        return ", ".join(old.place(key) for key in theirs[:3])

    found = []
    for text in str(error).splitlines():
        if place.search(text):
            head, _, rest = text.partition(": ")
            named = ", ".join(dict.fromkeys(part for part in place.sub(name, head).split(", ") if part))
            found.append(f"{named or old.where} gives {rest}")
        else:
            found.append(text)
    return ValueError("\n".join(found))


def find_goals(old: Old, maker: Maker) -> dict[str, list[str]]:
    """Returns {their key: our dotted keys whose value it decides}."""
    whole, goals = maker(old.again(old.tree)), {}
    for key, tree in _changed_trees(old.tree):
        try:
            other = maker(old.again(tree))
        except ValueError:  # another key needs this one, or it cannot have the other value
            continue
        goals.setdefault(key, []).extend(_differing(whole, other))
    return goals


def _changed_trees(tree: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (key, the tree without it) and (key, the tree with another value of it)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            for inner, other in _changed_trees(value, f"{place}{key}."):
                yield inner, tree | {key: other}
        else:
            yield f"{place}{key}", {k: v for k, v in tree.items() if k != key}
            yield f"{place}{key}", tree | {key: _other_value(value)}


def _other_value(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    return value[:-1] if isinstance(value, list) else value + 1 if isinstance(value, int | float) else f"{value}_"


def _differing(new: Any, old: Any, place: str = "") -> Iterator[str]:
    if isinstance(new, dict) and isinstance(old, dict):
        for key in {**new, **old}:
            yield from _differing(new.get(key), old.get(key), f"{place}.{key}" if place else key)
    elif new != old:
        yield place


def _meet(ours: str, place: str) -> bool:
    """True if one of two dotted keys lies in the other."""
    return bool(ours) and f"{place}.".startswith(f"{ours}.") or f"{ours}.".startswith(f"{place}.")

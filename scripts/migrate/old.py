"""Holds an ancestor's recipe: typed reading of its keys, what was assumed, what is dropped, where each key stands."""

from __future__ import annotations

import difflib
import math
from typing import Any

from scripts.migrate.keys import ALL_KEYS, DROPPED, GROUPS, LONGLIVE_GENERATION, PREFIXES, SUFFIXES

ANCHOR = "it only holds an anchor; what uses it has the value"


class Old:
    """One recipe. Reading a key takes it; what nobody takes must be a known drop, or it is an error.

    where: the file's name. lines: key -> `file:line`. holders: keys that hold anchors of others.
    """

    def __init__(
        self,
        tree: dict[str, Any],
        where: str,
        lines: dict[str, str] | None = None,
        holders: set[str] | None = None,
        gpus: int | None = None,
    ):
        self.tree, self.where, self.lines, self.holders = tree, where, lines or {}, holders or set()
        self.gpus = gpus
        self.taken: set[str] = set()
        self.dropped: dict[str, str] = {}
        self.assumed: dict[str, str] = {}  # what -> what is taken for it, or why
        self.silent: dict[str, Any] = {}  # keys that the file does not hold -> what the old programs do then

    def again(self, tree: dict[str, Any]) -> Old:
        """Returns the same recipe with another tree."""
        return Old(tree, self.where, self.lines, self.holders, self.gpus)

    @property
    def is_longlive_generation(self) -> bool:
        """True for a file of LongLive's generation, which its programs read alone."""
        return bool(set(LONGLIVE_GENERATION) & set(self.tree)) and not {"trainer", "distribution_loss"} & set(self.tree)

    def place(self, key: str) -> str:
        """Returns `file:line: key`, as errors begin."""
        line = self.lines.get(key) or self.lines.get(key.partition(".")[0]) or self.where
        return f"{line}: {key}"

    def error(self, key: str, text: str) -> ValueError:
        """Returns an error that names file, line and key."""
        return ValueError(f"{self.place(key)} {text}")

    def assume(self, what: str, taken: Any) -> None:
        """Notes something that the file does not say."""
        self.assumed[what] = str(taken)

    def find(self, key: str) -> Any:
        """Returns the value of a key (a dot goes inside), or None."""
        node: Any = self.tree
        for part in key.split("."):
            if not isinstance(node, dict) or node.get(part) is None:
                return None
            node = node[part]
        return node

    def take(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, or what the ancestors do without it, which is noted."""
        self.taken.add(key)
        value = self.find(key)
        if value is None and default not in (None, "", []):
            self.silent.setdefault(key, default)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """Returns a number. Errors: ValueError for anything else, and for one that is not finite."""
        value = self.take(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"is {value!r}; write a number, without quotes")
        return value

    def whole(self, key: str, default: int | None = None, least: int | None = None) -> Any:
        """Returns a whole number, `least` or more."""
        value = self.number(key, default)
        if value is not None and value != int(value):
            raise self.error(key, f"is {value!r}; write a whole number")
        if value is not None and value is not default and least is not None and value < least:
            raise self.error(key, f"is {value!r}; write {least} or more")
        return value if value is None else int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns a truth value, as Python sees it: 0 and null are false, any other number or text is true."""
        self.taken.add(key)
        group, _, name = key.rpartition(".")
        node = self.find(group) if group else self.tree
        if not isinstance(node, dict) or name not in node:
            self.silent.setdefault(key, default)
            return default
        value = node[name]
        if isinstance(value, list | dict):
            raise self.error(key, f"is {value!r}; write true or false")
        if isinstance(value, str):
            self.assume(key, f"the text {value!r} is {str(bool(value)).lower()} to their programs")
        return bool(value)

    def text(self, key: str, default: str = "") -> str:
        """Returns a text."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {value!r}; write a text")
        return value

    def numbers(self, key: str) -> list[Any]:
        """Returns a list of numbers, [] without the key."""
        value = self.take(key, [])
        fits = isinstance(value, list) and all(
            isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value
        )
        if not fits:
            example = ", ".join(part.strip(" []") for part in str(value).split(",")) or "1000, 750"
            raise self.error(key, f"is {value!r}; write a list of numbers, e.g. [{example}]")
        return value

    def drop(self, key: str, reason: str) -> None:
        """Names a key, if it is there, that has no place."""
        self.taken.add(key)
        if self.find(key) is not None:
            self.dropped[key] = reason

    def finish(self, other_kind: dict[str, str]) -> None:
        """Drops the rest. other_kind: keys of the other kind of run. Errors: ValueError naming unknown keys."""
        unknown = []
        for key in self._leaves():
            if key in self.taken:
                continue
            reason = DROPPED.get(key) or other_kind.get(key) or _affix(key)
            if reason is None and key in ALL_KEYS:
                reason = "this kind of run does not read it"
            if reason is None and key.partition(".")[0] in self.holders:
                reason = ANCHOR
            if reason is None:
                unknown.append(key)
            else:
                self.dropped[key] = reason
        if unknown:
            near = difflib.get_close_matches(unknown[0], ALL_KEYS, 1)
            others = f" (so are {', '.join(unknown[1:])})" if unknown[1:] else ""
            advice = f"did you mean {near[0]}? Else remove it" if near else "correct or remove it"
            raise self.error(unknown[0], f"is a key that neither ancestor reads{others}; {advice}")

    def _leaves(self) -> list[str]:
        """Returns the keys; those inside groups one by one, but of a group that is dropped as a whole."""
        groups = [group for group in GROUPS if group not in self.dropped]
        if wrong := [group for group in groups if not isinstance(self.tree.get(group) or {}, dict)]:
            raise self.error(wrong[0], f"is {self.tree[wrong[0]]!r}; write a group of keys")
        inner = [f"{group}.{key}" for group in groups for key in self.tree.get(group) or {}]
        return [key for key in self.tree if key not in groups] + inner


def _affix(key: str) -> str | None:
    """Returns the reason of a family of keys, or None."""
    found = [reason for start, reason in PREFIXES.items() if key.startswith(start)]
    found += [reason for end, reason in SUFFIXES.items() if key.endswith(end)]
    return found[0] if found else None

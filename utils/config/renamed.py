"""Keys of older versions: a recipe that uses one is told its new name; trees that were stored are read under new names.

    OLD = OldKeys({"pipeline.cache": "generation.cache"}, {"source.guidance": "a rollout has no guidance; remove it"})
    load(InferConfig, layers, OLD)           # "unknown key pipeline.cache.sink_frames; it is now generation.cache...."
    rename(stored, OLD)                      # the same tree under the new keys

A group takes its inner keys along; the longest entry that fits a key counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OldKeys:
    """renamed: old dotted key -> new one. removed: old dotted key -> why it is gone and what to do."""

    renamed: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)

    def describe(self, key: str) -> str | None:
        """Returns what became of a dotted key, or None for one that is not in the tables."""
        old = self._entry(key)
        if old is None:
            return None
        return self.removed.get(old) or f"it is now {self.renamed[old]}{key[len(old) :]}"

    def new_name(self, key: str) -> str | None:
        """Returns the dotted key of today, or None for one that is gone."""
        old = self._entry(key)
        if old is None:
            return key
        return None if old in self.removed else self.renamed[old] + key[len(old) :]

    def _entry(self, key: str) -> str | None:
        parts = key.split(".")
        heads = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((head for head in heads if head in self.renamed or head in self.removed), None)


NO_OLD_KEYS = OldKeys()


def rename(tree: dict[str, Any], old: OldKeys) -> dict[str, Any]:
    """Returns a tree that an older version stored under today's keys, without those that are gone."""
    renamed: dict[str, Any] = {}
    for path, value in leaves(tree):
        if key := old.new_name(".".join(path)):
            *groups, name = key.split(".")
            node = renamed
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = value
    return renamed


def fill(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree with the values of `defaults` where it has none: of knobs that are newer than it."""
    inner = {
        key: fill(value, defaults[key]) if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value
        for key, value in tree.items()
    }
    return {**defaults, **inner}


def leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yields (path, value) of what is not a group, or an empty one."""
    if not isinstance(tree, dict) or not tree:
        yield path, tree
        return
    for key, value in tree.items():
        yield from leaves(value, (*path, key))

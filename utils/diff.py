"""Compares two plain trees (dicts, lists, scalars) and lists the leaves in which they differ.

Everything that is compared with what an earlier run wrote down goes through here: settings of finished videos,
snapshots, checkpoints, trainings of an experiment.
"""

from __future__ import annotations

from dataclasses import dataclass


class _Absent:
    """Stands in for the value of a leaf that one of the two trees does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """One leaf in which two trees differ. path: its keys, joined by dots; old, new: values, or ABSENT."""

    path: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.path} was {self.old} and is {self.new}"

    @property
    def in_both(self) -> bool:
        """True if both trees have a value there."""
        return self.old is not ABSENT and self.new is not ABSENT


def differences(old, new, path: str = "") -> list[Change]:
    """Returns the leaves in which two trees differ, in the order of the old tree; new keys follow.

    Lists of equal length are compared item by item, others as one value; so is a dict with what is none. A dict that
    only one tree has counts leaf by leaf. Values are compared by ==. path: where the trees hang in larger ones.
    """
    old, new = _as_dict(old, new), _as_dict(new, old)
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**old, **new}
        pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
        return [c for key, a, b in pairs for c in differences(a, b, f"{path}.{key}" if path else str(key))]
    return [] if old == new else [Change(path, old, new)]


def describe(old, new, most: int = 5) -> str:
    """Returns the first `most` differences of two trees as one line of text; "" for equal trees."""
    return "; ".join(str(change) for change in differences(old, new)[:most])


def _as_dict(tree, other):
    """Returns a list as a dict by index if the other is as long, and an absent dict as an empty one; others as is."""
    if tree is ABSENT and isinstance(other, dict):
        return {}
    lists = isinstance(tree, list | tuple) and isinstance(other, list | tuple)
    return dict(enumerate(tree)) if lists and len(tree) == len(other) else tree

"""Differences of two trees: none between equal ones, exactly the changed leaves between others."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.diff import ABSENT, Change, describe, differences

NEW = "a value that no tree holds"
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
KEYS = st.text("abc", min_size=1, max_size=3)
TREES = st.dictionaries(
    KEYS,
    st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
    max_size=4,
)


def leaves(tree, keys=()):
    """Yields (keys, value) of each leaf, written a second time: without a path as text, without a comparison."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*keys, key))
    else:
        yield keys, tree


def parent(tree, keys):
    """Returns the dict or list that holds the leaf."""
    for key in keys[:-1]:
        tree = tree[key]
    return tree


def dotted(keys) -> str:
    """Returns the keys as a path."""
    return ".".join(map(str, keys))


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_equal_trees_do_not_differ(tree):
    other = copy.deepcopy(tree)
    assert differences(tree, other) == [] and describe(tree, other) == ""


@settings(max_examples=100, deadline=None)
@given(TREES, st.data())
def test_one_changed_leaf_is_the_only_difference(tree, data):
    found = list(leaves(tree))
    if not found:
        return
    keys, value = data.draw(st.sampled_from(found))
    other = copy.deepcopy(tree)
    parent(other, keys)[keys[-1]] = NEW
    assert differences(tree, other) == [Change(dotted(keys), value, NEW)]
    assert differences(other, tree) == [Change(dotted(keys), NEW, value)]
    assert describe(tree, other) == f"{dotted(keys)} was {value} and is {NEW}"


@settings(max_examples=100, deadline=None)
@given(TREES, st.data())
def test_a_missing_key_is_each_leaf_below_it(tree, data):
    if not tree:
        return
    key = data.draw(st.sampled_from(sorted(tree)))
    other = {name: value for name, value in tree.items() if name != key}
    gone = differences(tree, other)
    assert all(change.new is ABSENT and not change.in_both for change in gone)
    assert differences(other, tree) == [Change(c.path, ABSENT, c.old) for c in gone]
    if not isinstance(tree[key], dict | list):
        assert gone == [Change(key, tree[key], ABSENT)]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": [1, 2, 3]}, {"a": [1, 5, 3]}, ["a.1 was 2 and is 5"]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, ["a was [1, 2] and is [1, 2, 3]"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, ["a.0.c was absent and is 2"]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {}}, ["a.b.c was 1 and is absent", "a.b.d was 2 and is absent"]),
        ({"a": 1}, {"a": {"b": 2}}, ["a was 1 and is {'b': 2}"]),
        ({"a": {"b": 2}}, {"a": None}, ["a was {'b': 2} and is None"]),
        ({}, {"a": []}, ["a was absent and is []"]),
        ({}, {"a": {}}, []),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4, "c": 5}, ["a was 1 and is 4", "b was 2 and is 3", "c was absent and is 5"]),
        ({"a": 0}, {"a": 0.0}, []),
    ],
)
def test_differences_of_small_trees(old, new, lines):
    assert [str(change) for change in differences(old, new)] == lines


def test_describe_stops_at_most():
    old, new = {str(n): n for n in range(9)}, {str(n): -1 for n in range(9)}
    assert describe(old, new) == "; ".join(f"{n} was {n} and is -1" for n in range(5))
    assert describe(old, new, 1) == "0 was 0 and is -1"

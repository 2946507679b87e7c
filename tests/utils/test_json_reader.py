"""One reader for every JSON: each fault is one error that says where, and what may stand there instead."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.json_reader import DEEPEST, JsonError, get, parse_json, read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)
FAULTS = {
    b"": "is empty",
    b" \n": "is empty",
    b"{": "is not JSON",
    b'{"a": }': "line 1, column 7",
    b'\n\n{"a": 1,}': "line 3, column",
    b"\xff{}": "is not UTF-8 .byte 0",
    b'{"a": "\xe9"}': "byte 7",
    b"[]": "holds a list .*it must be an object",
    b"5": "holds 5; it must be an object",
    b'"x"': "holds 'x'",
    b"[" * 200_000: "nested deeper than 64",
    b'{"a": ' * 100 + b"1" + b"}" * 100: "nested deeper than 64",
    b'{"a": ' + b"9" * 5000 + b"}": "a number of 5000 digits",
    b"null": "holds None",
}


@given(JSON)
def test_what_json_writes_is_read(value):
    text = json.dumps(value)
    assert parse_json(text, "x", type(value)) == value == parse_json(text.encode(), "x", type(value))
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "x", type(value)) == value


@pytest.mark.parametrize("data", FAULTS, ids=[text[:24] for text in FAULTS.values()])
def test_a_fault_names_the_file(tmp_path, data):
    path = tmp_path / "facts.json"
    path.write_bytes(data)
    with pytest.raises(JsonError, match=f"^{path} .*{FAULTS[data]}"):
        read_json(path)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_named(data):
    try:
        assert isinstance(parse_json(data, "the header"), dict)
    except JsonError as error:
        assert str(error).startswith("the header ")


def test_depth_is_measured_without_recursion():
    fits = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(fits, "x", list)
    with pytest.raises(JsonError, match="nested"):
        parse_json(f"[{fits}]", "x", list)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "loop", "endless", "missing", "."):
        with pytest.raises(JsonError, match=str(tmp_path)):
            read_json(tmp_path / name)


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(JsonError, match="1,099,511,627,776 bytes"):
        read_json(tmp_path / "big.json")


def test_get_checks_the_type():
    tree = {"n": 3, "x": 1.5, "yes": True, "words": ["a"], "none": None}
    assert get(tree, "n", int, "f") == 3 and get(tree, "n", float, "f") == 3 and get(tree, "yes", bool, "f") is True
    assert get(tree, "lost", int, "f", 7) == 7 and get(tree, "none", (str, type(None)), "f") is None
    for key, kind, words in (
        ("n", str, "f: n is 3; it must be a text"),
        ("yes", int, "f: yes is True; it must be a whole number"),
        ("x", int, "f: x is 1.5; it must be a whole number"),
        ("words", dict, "f: words is a list .* it must be an object"),
        ("none", (str, list), "f: none is None; it must be a text or a list"),
        ("lost", list, "f has no 'lost'; it must be a list"),
    ):
        with pytest.raises(JsonError, match=words):
            get(tree, key, kind, "f")

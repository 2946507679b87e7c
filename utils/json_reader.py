"""The one reader of JSON: files of other programs, headers, manifests, logs. Imports nothing but the standard library.

Each fault (no file, no text, bad syntax, another type, too deep, too large) is one `JsonError` that says where it is.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 256 << 20  # bytes of a file; a text encoder's vocabulary has some 20 MB
DEEPEST = 64  # lists and objects inside each other
DIGITS = 400  # of a number
Kind = type | tuple[type, ...]
WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class JsonError(ValueError):
    """What is wrong with a JSON, and where it came from."""


def read_json(path: str | Path, kind: Kind = dict) -> Any:
    """Returns the content of a JSON file. kind: the types that the whole may have.

    Errors: JsonError naming the file.
    """
    return parse_json(read_bytes(path), str(path), kind)


def read_bytes(path: str | Path, largest: int = LARGEST) -> bytes:
    """Returns the bytes of a regular file. Errors: JsonError for anything else, an unreadable or a huge one."""
    try:
        # Without waiting: a FIFO would block until somebody writes to it.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise JsonError(f"{path} is not a regular file; give a file")
            if facts.st_size > largest:
                raise JsonError(f"{path} has {facts.st_size:,} bytes; a file of its kind has at most {largest:,}")
            return file.read(largest + 1)
    except OSError as error:
        raise JsonError(f"{path} cannot be read ({error.strerror or error})") from error


def parse_json(text: str | bytes, where: str, kind: Kind = dict, **hooks) -> Any:
    """Returns the value of a JSON text. where: a file, or a file and what of it; hooks: those of `json.loads`.

    Errors: JsonError that begins with `where`.
    """
    try:
        text = text if isinstance(text, str) else bytes(text).decode("utf-8-sig")
        value = json.loads(text, parse_int=hooks.pop("parse_int", _whole), **hooks)
        deep = _depth(value) > DEEPEST
    except UnicodeDecodeError as error:
        raise JsonError(f"{where} is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise JsonError(
            f"{where} is not JSON ({error.msg} at {place})" if text.strip() else f"{where} is empty"
        ) from error
    except RecursionError:
        deep = True
    if deep:
        raise JsonError(f"{where} is nested deeper than {DEEPEST} levels")
    if not isinstance(value, kind):
        raise JsonError(f"{where} holds {shown(value)}; it must be {words(kind)}")
    return value


def get(tree: Mapping, key: str, kind: Kind, where: str, default: Any = ...) -> Any:
    """Returns tree[key] after a check of its type; a truth value is no number. default: where the key is missing.

    Errors: JsonError naming `where` and the key.
    """
    if key not in tree:
        if default is ...:
            raise JsonError(f"{where} has no {key!r}; it must be {words(kind)}")
        return default
    value, kinds = tree[key], kind if isinstance(kind, tuple) else (kind,)
    right = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not right or (isinstance(value, bool) and bool not in kinds):
        raise JsonError(f"{where}: {key} is {shown(value)}; it must be {words(kind)}")
    return value


def words(kind: Kind) -> str:
    """Returns types as a user reads them: "a list or a text"."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("nothing" if k is type(None) else WORDS.get(k, k.__name__) for k in kinds)


def shown(value: Any) -> str:
    """Returns a value for a message, cut after 60 characters."""
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"{words(type(value))} {value!r:.40}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise json.JSONDecodeError(f"a number of {len(text)} digits", text, 0)
    return int(text)


def _depth(value: Any) -> int:
    """Returns how many lists and objects lie inside each other, without recursion."""
    deepest, level = 0, [value]
    while level and deepest <= DEEPEST:
        parts = [part for part in level if isinstance(part, (dict, list))]
        level = [child for part in parts for child in (part.values() if isinstance(part, dict) else part)]
        deepest += bool(parts)
    return deepest

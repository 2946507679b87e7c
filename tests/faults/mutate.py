"""Damages of bytes and of JSON, drawn from a seed: the same number gives the same damage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator

VALUES = (None, True, -1, 0, 1.5, 2**63, 10**400, float("nan"), "", "x", [], {}, [[]], {"a": 1}, "../../etc/passwd")


def damaged_bytes(data: bytes, seed: int) -> tuple[str, bytes]:
    """Returns (what was done, the bytes): cut, emptied, overwritten, doubled or with other bytes at one place."""
    draw = random.Random(seed)
    ways = [_cut, _empty, _zeros, _noise, _grown, _flipped, _shifted, _text]
    way = ways[seed % len(ways)]
    return way.__name__.strip("_"), way(data, draw)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, max(len(data), 2))]


def _empty(data: bytes, draw: random.Random) -> bytes:
    return b""


def _zeros(data: bytes, draw: random.Random) -> bytes:
    return bytes(len(data))


def _noise(data: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(min(len(data), 4096))


def _grown(data: bytes, draw: random.Random) -> bytes:
    return data + draw.randbytes(64)


def _flipped(data: bytes, draw: random.Random) -> bytes:
    """The beginning of a file says what the rest is: the flip lies in the first 256 bytes."""
    place = draw.randrange(min(len(data), 256))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def _shifted(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(min(len(data), 64))
    return data[:place] + draw.randbytes(3) + data[place:]


def _text(data: bytes, draw: random.Random) -> bytes:
    return b"<!DOCTYPE html>\n<html><body>404: not found</body></html>\n"


def leaves(tree, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path (keys and indices) of every node below the root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def damaged_json(text: str, seed: int) -> tuple[str, str]:
    """Returns (what was done, the text): one node of another value or missing, or the whole of another shape."""
    draw, tree = random.Random(seed), json.loads(text)
    if seed % 7 == 6:
        name, text = draw.choice(
            [
                ("a list", "[]"),
                ("a number", "5"),
                ("null", "null"),
                ("deep", "[" * 100_000),
                ("half", text[: len(text) // 2]),
                ("no UTF-8", "\udce9"),
            ]
        )
        return name, text
    path = draw.choice(list(leaves(tree)))
    tree, value = copy.deepcopy(tree), draw.choice(VALUES)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if seed % 7 == 5:
        del node[path[-1]]
        return f"{'.'.join(map(str, path))} missing", json.dumps(tree)
    node[path[-1]] = value
    return f"{'.'.join(map(str, path))} = {str(value)[:12]}", json.dumps(tree)

"""Reads the values of an LMDB's `data.mdb` without mapping it into memory.

The library maps the file, so a page behind the end of a cut file, or a damaged pointer, ends the process by a signal
and without a word. Here every page is read at its place and every number of it is checked: damage is an error.
Source: liblmdb's mdb.c, the structures MDB_page, MDB_node, MDB_meta and MDB_db (64 bits, little-endian).
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path

from utils.data.records import BadRecord, open_regular

MAGIC, VERSIONS = 0xBEEFC0DE, (1, 999)
PAGE_HEAD, NODE_HEAD, META_BYTES = 16, 8, 136
BRANCH, LEAF, OVERFLOW = 1, 2, 4  # kinds of a page
ELSEWHERE, PLAIN = 1, 0  # of a node: its value lies on overflow pages, or behind its key
DEEPEST = 32  # pages from the root to a leaf
LONGEST_KEY = 511
CACHED_PAGES = 256


class LmdbFile:
    """One environment, read only: `file.get(key) -> bytes or None`. `entries`: how many keys it has.

    folder: holds `data.mdb`. Errors: ValueError naming a file that is none, or is cut off.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "data.mdb"
        self._file = open_regular(self.path)
        self.size = os.fstat(self._file.fileno()).st_size
        first = self._meta(0, 0)
        self.page_bytes = struct.unpack_from("<I", first, 24)[0] if first else 0
        if not 256 <= self.page_bytes <= 1 << 16:
            raise ValueError(f"{self.path} is not an LMDB, or its head is damaged; copy or write it again")
        metas = [meta for meta in (first, self._meta(1, self.page_bytes)) if meta]
        latest = max(metas, key=lambda meta: struct.unpack_from("<Q", meta, 128)[0])
        _, flags, self._depth, *_, self.entries, self._root = struct.unpack_from("<IHHQQQQQ", latest, 72)
        pages = struct.unpack_from("<Q", latest, 120)[0] + 1
        if flags or not pages <= 1 << 48:
            raise ValueError(f"{self.path} is damaged, or an LMDB of another kind; copy or write it again")
        if self.size < pages * self.page_bytes:
            need = pages * self.page_bytes
            raise ValueError(f"{self.path} is cut off: it has {self.size:,} of {need:,} bytes; copy it again")
        self._page = lru_cache(CACHED_PAGES)(self._read_page)

    def get(self, key: bytes) -> bytes | None:
        """Returns the value of a key, or None. Errors: BadRecord naming the file where it is damaged."""
        number = self._root
        if not self.entries:
            return None
        for _ in range(DEEPEST):
            page = self._page(number)
            flags, lower = struct.unpack_from("<HH", page, 10)
            count = (lower - PAGE_HEAD) // 2
            if not (0 < count <= len(page) // 2 and flags & (BRANCH | LEAF)):
                raise self._damage(f"page {number}")
            if flags & LEAF:
                return self._find(page, count, key, number)
            number = self._child(page, count, key, number)
        raise self._damage("its tree has no leaf")

    def _child(self, page: bytes, count: int, key: bytes, number: int) -> int:
        """Returns the page below that holds the key: the last whose first key is not greater."""
        low, high = 0, count - 1  # the first key of a branch page is empty
        while low < high:
            middle = (low + high + 1) // 2
            if self._node(page, middle, number)[1] <= key:
                low = middle
            else:
                high = middle - 1
        at = self._node(page, low, number)[0]
        first, second, third = struct.unpack_from("<HHH", page, at)
        return first | second << 16 | third << 32

    def _find(self, page: bytes, count: int, key: bytes, number: int) -> bytes | None:
        """Returns the value of the key on a leaf page, or None."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            at, found = self._node(page, middle, number)
            if found == key:
                return self._value(page, at + NODE_HEAD + len(key), *struct.unpack_from("<IH", page, at), number)
            low, high = (middle + 1, high) if found < key else (low, middle)
        return None

    def _node(self, page: bytes, index: int, number: int) -> tuple[int, bytes]:
        """Returns (place, key) of a node of a page."""
        (at,) = struct.unpack_from("<H", page, PAGE_HEAD + 2 * index)
        if at + NODE_HEAD <= len(page):
            (length,) = struct.unpack_from("<H", page, at + 6)
            if length <= LONGEST_KEY and at + NODE_HEAD + length <= len(page):
                return at, page[at + NODE_HEAD : at + NODE_HEAD + length]
        raise self._damage(f"page {number}")

    def _value(self, page: bytes, at: int, length: int, flags: int, number: int) -> bytes:
        if flags == ELSEWHERE and at + 8 <= len(page):
            (first,) = struct.unpack_from("<Q", page, at)
            (kind,) = struct.unpack_from("<H", self._page(first), 10)
            if kind & OVERFLOW:
                return self._read(first * self.page_bytes + PAGE_HEAD, length)
        if flags != PLAIN or at + length > len(page):
            raise self._damage(f"page {number}")
        return page[at : at + length]

    def _meta(self, number: int, at: int) -> bytes | None:
        """Returns one of the two heads, or None if it is none."""
        if self.size < at + PAGE_HEAD + META_BYTES:
            return None
        meta = self._read(at + PAGE_HEAD, META_BYTES)
        magic, version = struct.unpack_from("<II", meta, 0)
        return meta if magic == MAGIC and version in VERSIONS else None

    def _read_page(self, number: int) -> bytes:
        page = self._read(number * self.page_bytes, self.page_bytes)
        if struct.unpack_from("<Q", page, 0)[0] != number:
            raise self._damage(f"page {number}")
        return page

    def _read(self, at: int, length: int) -> bytes:
        if at + length > self.size:
            raise self._damage(f"{length:,} bytes at {at:,} lie behind its end")
        try:
            data = os.pread(self._file.fileno(), length, at)
        except OSError as error:
            raise BadRecord(f"{self.path} cannot be read at byte {at:,} ({error.strerror})") from error
        if len(data) < length:
            raise self._damage("it was cut while it was read")
        return data

    def _damage(self, what: str) -> BadRecord:
        return BadRecord(f"{self.path} is damaged ({what}); copy or write it again")

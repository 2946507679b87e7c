"""The boxes of a fragmented MP4 (ISO 14496-12): what an encoder's output consists of, and the index at its end.

`ftyp moov` begin the file; each fragment is `moof mdat` and starts with a keyframe; `mfra` at the end says where.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

PICTURES = 1  # number of the track that holds them; sound is the second
TRUN_FIELDS = (0x100, 0x200, 0x400, 0x800)  # of each sample: duration, size, flags, offset of its presentation


@dataclass(frozen=True)
class Fragment:
    """One fragment: where it starts in the file, when it is first shown (ticks), how many frames it holds."""

    offset: int
    time: int
    num_frames: int


def boxes(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Yields (offset, length, kind) of the boxes at the top of a file, from `start` on.

    Errors: ValueError where one is cut: the file ends within it.
    """
    end = os.fstat(file.fileno()).st_size
    while start < end:
        file.seek(start)
        length, kind, wide = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = wide if length == 1 else length
        if length < 8 or start + length > end:
            raise ValueError(f"the box at byte {start} is cut off")
        yield start, length, kind
        start += length


def fragments(file: BinaryIO, start: int = 0) -> list[Fragment]:
    """Returns the fragments with pictures from byte `start` on; errors: ValueError for one that is cut."""
    found = []
    for offset, length, kind in boxes(file, start):
        if kind == b"moof":
            file.seek(offset)
            found += _fragment(offset, file.read(length))
    return found


def index(found: list[Fragment]) -> bytes:
    """Returns the box `mfra` with one entry per fragment, by which players jump."""
    rows = b"".join(struct.pack(">QQBBB", f.time, f.offset, 1, 1, 1) for f in found)
    table = struct.pack(">I4sIIII", 24 + len(rows), b"tfra", 1 << 24, 1, 0, len(found)) + rows
    length = 8 + len(table) + 16
    return struct.pack(">I4s", length, b"mfra") + table + struct.pack(">I4sII", 16, b"mfro", 0, length)


def _fragment(offset: int, moof: bytes) -> list[Fragment]:
    """Returns the fragment, or none: other programs put sound into fragments of its own."""
    tracks = [dict(_inner(content, 0)) for kind, content in _inner(moof, 8) if kind == b"traf"]
    pictures = [track for track in tracks if struct.unpack_from(">I", track[b"tfhd"], 4)[0] == PICTURES]
    if not pictures:
        return []
    inner = pictures[0]
    (start,) = struct.unpack_from(">Q" if inner[b"tfdt"][0] else ">I", inner[b"tfdt"], 4)
    run = inner[b"trun"]
    flags, count = struct.unpack_from(">II", run)
    place, shown = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4), 0
    if flags & 0x800:
        place += 4 * sum(bool(flags & field) for field in TRUN_FIELDS[:-1])
        (shown,) = struct.unpack_from(">i", run, place)
    return [Fragment(offset, start + shown, count)]


def _inner(data: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields (kind, content) of the boxes within a box's bytes."""
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, data[start + 8 : start + length]
        start += length

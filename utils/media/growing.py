"""Sends a file while it is written: what is there at once, the rest as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 16  # bytes of one read
PAUSE = 0.1  # seconds between two looks at a file that has nothing new


async def follow(paths: Sequence[Path], is_over: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yields the bytes of a file from its beginning, until it is read to its end and `is_over()` is true.

    paths: the names that it may have, now and when it is finished; it may not be there yet. A file that is renamed or
    removed meanwhile is read on.
    """
    file = None
    try:
        while True:
            over = is_over()  # before the read: what is written after it is read in the next turn
            file = file or _open_first(paths)
            if data := file.read(PIECE) if file else b"":
                yield data
            elif over:
                return
            else:
                await asyncio.sleep(PAUSE)
    finally:
        if file:
            file.close()


def _open_first(paths: Sequence[Path]) -> BinaryIO | None:
    for path in paths:
        try:
            return path.open("rb")
        except FileNotFoundError:
            continue
    return None

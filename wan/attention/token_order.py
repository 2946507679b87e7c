"""The order of tokens along a space-filling curve, so that a block of neighbours is a small box of the video.

The generalised Hilbert curve of J. Cervenka ("gilbert") fills a box of any size; even sizes in unit steps, odd ones
with a few diagonal ones. Source: Video-BLADE (arXiv 2508.10774) orders a whole clip by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

Cell = tuple[int, int, int]  # x (column), y (row), z (frame)


@dataclass(frozen=True)
class TokenOrder:
    """Callable as `TokenLayout.order`: the curve, cut into stretches that are filled up to whole blocks.

    whole: `clip` = one curve over frames, rows and columns; `frame` = the curve within each frame, which stay whole, so
    caches, frame masks and one sigma per frame go with it. block: tokens of a block; a stretch that does not fill its
    last one is padded with its last token.
    """

    whole: str = "frame"
    block: int = 128

    def __call__(self, frames: int, rows: int, columns: int) -> tuple[int, ...]:
        """Returns the tokens (frame slowest, then rows, columns) in their order, the last of a stretch repeated."""
        if self.whole == "clip":
            return self._filled(curve_order(columns, rows, frames))
        size, one = rows * columns, self._filled(curve_order(columns, rows, 1))
        return tuple(frame * size + token for frame in range(frames) for token in one)

    def _filled(self, stretch: tuple[int, ...]) -> tuple[int, ...]:
        return stretch + stretch[-1:] * (-len(stretch) % self.block)


@functools.lru_cache(maxsize=32)
def curve_order(width: int, height: int, depth: int) -> tuple[int, ...]:
    """Returns x + width (y + height z) of each cell along the curve through a box, from cell (0, 0, 0) on."""
    across, down, along = (width, 0, 0), (0, height, 0), (0, 0, depth)
    if width >= height and width >= depth:
        axes = (across, down, along)
    elif height >= width and height >= depth:
        axes = (down, across, along)
    else:
        axes = (along, across, down)
    return tuple(x + width * (y + height * z) for x, y, z in _walk((0, 0, 0), *axes))


def _walk(start: Cell, a: Cell, b: Cell, c: Cell) -> Iterator[Cell]:
    """Yields the cells of the box at `start` spanned by the vectors a (the main direction), b and c."""
    w, h, d = (sum(map(abs, axis)) for axis in (a, b, c))
    if (w, h, d).count(1) >= 2:
        axis, length = (a, w) if h == d == 1 else (b, h) if w == d == 1 else (c, d)
        for n in range(length):  # none in a box without extent
            yield _sum(start, _times(_unit(axis), n))
        return
    a2, b2, c2 = _half(a), _half(b), _half(c)
    rest_a, rest_b, rest_c = _sum(a, a2, -1), _sum(b, b2, -1), _sum(c, c2, -1)
    last_a, last_b, last_c = _sum(a, _unit(a), -1), _sum(b2, _unit(b), -1), _sum(c2, _unit(c), -1)
    far_c = _sum(c, _unit(c), -1)

    def at(*offsets: Cell) -> Cell:
        return functools.reduce(_sum, offsets, start)

    if 2 * w > 3 * h and 2 * w > 3 * d:
        parts = [(start, a2, b, c), (at(a2), rest_a, b, c)]
    elif 3 * h > 4 * d:
        parts = [(start, b2, c, a2), (at(b2), a, rest_b, c), (at(last_a, last_b), _back(b2), c, _back(rest_a))]
    elif 3 * d > 4 * h:
        parts = [(start, c2, a2, b), (at(c2), a, b, rest_c), (at(last_a, last_c), _back(c2), _back(rest_a), b)]
    else:
        parts = [
            (start, b2, c2, a2),
            (at(b2), c, a2, rest_b),
            (at(last_b, far_c), a, _back(b2), _back(rest_c)),
            (at(last_a, b2, far_c), _back(c), _back(rest_a), rest_b),
            (at(last_a, last_b), _back(b2), c2, _back(rest_a)),
        ]
    for part in parts:
        yield from _walk(*part)


def _sum(a: Cell, b: Cell, sign: int = 1) -> Cell:
    return a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2]


def _times(a: Cell, n: int) -> Cell:
    return a[0] * n, a[1] * n, a[2] * n


def _back(a: Cell) -> Cell:
    return _times(a, -1)


def _unit(a: Cell) -> Cell:
    x, y, z = ((n > 0) - (n < 0) for n in a)
    return x, y, z


def _half(a: Cell) -> Cell:
    """Returns half of an axis, rounded towards minus infinity; an even number of cells if there are more than two."""
    x, y, z = (n // 2 for n in a)
    length, half = sum(map(abs, a)), abs(x) + abs(y) + abs(z)
    return _sum((x, y, z), _unit(a)) if half % 2 and length > 2 else (x, y, z)

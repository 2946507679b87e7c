"""Writes GIFs frame by frame: cut off at any time they play, and they can be gone on with."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.atomic import GrowingFile
from utils.media.image import check_frames

GIF_FPS = 50  # at most


class GifWriter:
    """Writes an endless GIF frame by frame: `with GifWriter(path, 8) as gif: gif.write(frames)`.

    Its clock ticks in 1/100 s, so fps holds on average. Until the end it is `<name>.partial.gif`; marks are as those
    of `VideoWriter`. Errors: ValueError for an fps outside (0, 50], no frames, or a file that is not the marked one.
    """

    def __init__(self, path, fps: float, mark: dict | None = None):
        if not 0 < fps <= GIF_FPS:
            raise ValueError(f"a GIF needs frames and an fps within (0, {GIF_FPS}]; the fps is {fps}")
        self.path, self.fps, self.num_frames, self._before = Path(path), fps, 0, None
        self.partial = self.path.with_suffix(".partial.gif")
        self._file = None if mark is None else GrowingFile(self.path, self.partial, mark)
        if mark is not None:
            self.num_frames = mark["frames"]

    def write(self, frames_PHWC) -> None:
        """Appends uint8 frames [P, H, W, 3]."""
        for frame in check_frames(frames_PHWC):
            if self._file is None:
                self._file = GrowingFile(self.path, self.partial)
                loop = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"  # without end
                self._file.write(b"GIF89a" + struct.pack("<HHBBB", *frame.shape[1::-1], 0, 0, 0) + loop)
            self._file.write(self._encoded(frame))
            self.num_frames += 1

    def mark(self) -> dict:
        """Brings all frames to the disk; the next one is whole. Returns what `GifWriter(..., mark=...)` takes."""
        self._before = None
        return {"frames": self.num_frames, **self._file.mark()}

    def close(self) -> None:
        """Finishes the file and gives it its final name."""
        if self._file is None:
            raise ValueError(f"a GIF needs frames and an fps within (0, {GIF_FPS}]; {self.path} got no frames")
        self._file.write(b";")
        self._file.finish()

    def abort(self, keep: bool = False) -> None:
        """Gives up: removes the partial file, or leaves it."""
        if self._file is not None:
            self._file.give_up(keep)

    def __enter__(self) -> GifWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def _encoded(self, frame: np.ndarray) -> bytes:
        """Returns the part of the picture that differs from the one before, with its own 256 colours."""
        from PIL import Image
        from PIL.GifImagePlugin import getdata

        top, left, bottom, right = 0, 0, *frame.shape[:2]
        if self._before is not None:
            changed = (frame != self._before).any(2)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 1)
            left, right = (columns[0], columns[-1] + 1) if len(rows) else (0, 1)
        self._before = frame.copy()
        part = np.ascontiguousarray(frame[top:bottom, left:right])
        image = Image.fromarray(part).quantize(256, dither=Image.Dither.NONE)
        ticks = [round(100 * i / self.fps) for i in (self.num_frames, self.num_frames + 1)]
        options = {"duration": 10 * (ticks[1] - ticks[0]), "disposal": 1, "include_color_table": True}
        return b"".join(getdata(image, (int(left), int(top)), **options))


def write_gif(path: str | Path, frames_PHWC: Sequence[np.ndarray], fps: float) -> None:
    """Writes uint8 frames [P, H, W, 3] as an endless GIF, whole or not at all; errors: as `GifWriter`."""
    with GifWriter(path, fps) as gif:
        gif.write(frames_PHWC)

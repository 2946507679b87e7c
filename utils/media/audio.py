"""Sounds as samples that are read where they are needed: from memory, from a file, or as they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class ArraySound:
    """Samples [N] or [N, channels] in memory, at `rate`."""

    samples: np.ndarray
    rate: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return 1 if self.samples.ndim == 1 else self.samples.shape[1]

    @property
    def length(self) -> int:
        """In samples."""
        return len(self.samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; zeros before the start and behind the end."""
        rows = self.samples.reshape(self.length, -1)
        found = np.zeros((stop - start, rows.shape[1]), np.float32)
        first, last = max(start, 0), min(max(stop, 0), self.length)
        if last > first:
            found[first - start : last - start] = rows[first:last]
        return found


class FileSound:
    """The sound of any file with a sound track: one channel at `rate`, decoded as it is asked for.

    Read forward, memory does not grow with the file: the latest `kept_seconds` stay; what is asked for before them is
    decoded again from the file's start, so that samples never depend on the order of reading.
    Errors: ValueError for a file that cannot be read, has no sound, or holds less than a tenth of a second.
    """

    channels = 1

    def __init__(self, path: str | Path, rate: int = 16_000, kept_seconds: float = 120.0):
        self.path, self.rate = Path(path), rate
        self._room = int(kept_seconds * rate)
        self._restart()
        self.length = self._count()
        if self.length < LEAST_SECONDS * rate:
            raise ValueError(f"{self.path} holds {self.length / rate:.3g} s of sound; give {LEAST_SECONDS} s at least")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, 1]; zeros before the start and behind the end."""
        first, last = max(start, 0), min(max(stop, 0), self.length)
        found = np.zeros((stop - start, 1), np.float32)
        if last <= first:
            return found
        if first < self._begin:
            self._restart()
        while self._begin + len(self._held) < last and (piece := next(self._pieces, None)) is not None:
            self._held = np.concatenate((self._held, piece))
            surplus = len(self._held) - max(self._room, last - first + len(piece))
            if surplus > 0 and self._begin + surplus <= first:
                self._begin, self._held = self._begin + surplus, self._held[surplus:]
        part = self._held[first - self._begin : last - self._begin]
        found[first - start : first - start + len(part), 0] = part
        return found

    def _restart(self) -> None:
        self._begin, self._held, self._pieces = 0, np.zeros(0, np.float32), decode_mono(self.path, self.rate)

    def _count(self) -> int:
        return sum(len(piece) for piece in decode_mono(self.path, self.rate))


def decode_mono(path: Path, rate: int) -> Iterator[np.ndarray]:
    """Yields a file's sound, one channel at `rate`, piece by piece.

    Errors: ValueError for a file that cannot be read, has no sound, or holds samples that are not finite.
    """
    import av

    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a file with sound (wav, mp3, m4a, flac, ogg, mp4, ...)")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound track; give a file with sound")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(container.streams.audio[0]):
                frame.pts = None  # gaps in the time stamps are no silence
                yield from _finite(path, resampler.resample(frame))
            yield from _finite(path, resampler.resample(None))
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as sound: {error}") from error


def _finite(path: Path, frames) -> Iterator[np.ndarray]:
    for frame in frames:
        samples = frame.to_ndarray().reshape(-1)
        if not np.isfinite(samples).all():
            raise ValueError(f"{path} holds samples that are not finite numbers; write it again")
        yield samples

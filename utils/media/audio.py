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
    """The sound of any file with a sound track: one or two channels at `rate`, decoded as it is asked for.

    Read forward, memory does not grow with the file: the latest `kept_seconds` stay; what is asked for before them is
    decoded again from the file's start, so that samples never depend on the order of reading.
    Errors: ValueError for a file that cannot be read, has no sound, or holds less than a tenth of a second.
    """

    def __init__(self, path: str | Path, rate: int = 16_000, channels: int = 1, kept_seconds: float = 120.0):
        self.path, self.rate, self.channels = Path(path), rate, channels
        self._room = int(kept_seconds * rate)
        self._restart()
        self.length = self._count()
        if self.length < LEAST_SECONDS * rate:
            raise ValueError(f"{self.path} holds {self.length / rate:.3g} s of sound; give {LEAST_SECONDS} s at least")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; zeros before the start and behind the end."""
        first, last = max(start, 0), min(max(stop, 0), self.length)
        found = np.zeros((stop - start, self.channels), np.float32)
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
        found[first - start : first - start + len(part)] = part
        return found

    def _restart(self) -> None:
        self._begin, self._held = 0, np.zeros((0, self.channels), np.float32)
        self._pieces = decode_sound(self.path, self.rate, self.channels)

    def _count(self) -> int:
        return sum(len(piece) for piece in decode_sound(self.path, self.rate, self.channels))


@dataclass(frozen=True)
class MixedSound:
    """Several sounds at once, of one rate and number of channels: their sum."""

    sounds: tuple

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self.sounds[0].rate

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.sounds[0].channels

    @property
    def length(self) -> int:
        """In samples, of the longest."""
        return max(sound.length for sound in self.sounds)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; what is too loud is cut where it is written."""
        return sum(sound.read(start, stop) for sound in self.sounds)


def decode_sound(path: Path, rate: int, channels: int = 1) -> Iterator[np.ndarray]:
    """Yields a file's sound [N, channels] at `rate`, piece by piece.

    Errors: ValueError for a file that cannot be read, has no sound, or holds samples that are not finite.
    """
    import av

    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a file with sound (wav, mp3, m4a, flac, ogg, mp4, ...)")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound track; give a file with sound")
            stream = container.streams.audio[0]
            # The library's own downmix to one channel is louder than the mean that models are trained with.
            surround = "stereo" if channels == 2 and stream.codec_context.layout.nb_channels > 2 else None
            resampler = av.AudioResampler(format="flt", layout=surround, rate=rate)
            for frame in container.decode(stream):
                frame.pts = None  # gaps in the time stamps are no silence
                yield from _finite(path, resampler.resample(frame), channels)
            yield from _finite(path, resampler.resample(None), channels)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as sound: {error}") from error


def _finite(path: Path, frames, channels: int) -> Iterator[np.ndarray]:
    for frame in frames:
        samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
        if channels == 1:
            samples = samples.mean(1, keepdims=True)
        elif samples.shape[1] == 1:
            samples = samples.repeat(2, 1)
        if not np.isfinite(samples).all():
            raise ValueError(f"{path} holds samples that are not finite numbers; write it again")
        yield samples

"""Sounds as samples that are read where they are needed: from memory, from a file, or as they arrive."""

from __future__ import annotations

import threading
from collections import deque
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
        self._room = max(1, int(kept_seconds * rate))
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
        if self._held and first < self._held[0][0]:
            self._restart()
        while self._end < last and (piece := next(self._pieces, None)) is not None:
            self._held.append((self._end, piece))
            self._end += len(piece)
            while self._held[0][0] + len(self._held[0][1]) <= min(first, self._end - self._room):
                self._held.popleft()
        for begin, piece in reversed(self._held):
            if begin + len(piece) <= first:
                break
            part = piece[max(first - begin, 0) : max(last - begin, 0)]
            place = max(begin, first) - start
            found[place : place + len(part)] = part
        return found

    def _restart(self) -> None:
        # Pieces as they are decoded, each with its first sample: to join them would copy all that is kept, each time.
        self._held, self._end = deque[tuple[int, np.ndarray]](), 0
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


class LiveSound:
    """A sound that arrives while it is read: one channel at `rate`, `append(samples, rate)` from any thread.

    Everything that was appended counts on one clock from the first sample on; `length` is what is there now. What is
    read behind it is silence, so who must not miss any waits with `wait_for`. The latest `kept_seconds` stay; older
    samples cannot be read any more.
    """

    channels = 1

    def __init__(self, rate: int = 16_000, kept_seconds: float = 600.0):
        self.rate, self._room = rate, int(kept_seconds * rate)
        self._held, self._begin, self._closed = np.zeros(0, np.float32), 0, False
        self._changed, self._resamplers = threading.Condition(), {}

    @property
    def length(self) -> int:
        """Samples that have arrived."""
        with self._changed:
            return self._begin + len(self._held)

    def append(self, samples: np.ndarray, rate: int) -> None:
        """Adds samples [N] or [N, channels], floats in [-1, 1] or 16-bit numbers, at their own rate.

        Errors: ValueError for another type, samples that are not finite, another rate than before, or behind the end.
        """
        own = self._resampled(check_samples(samples), rate)
        with self._changed:
            if self._closed:
                raise ValueError("the sound has ended; begin another one")
            self._held = np.concatenate((self._held, own))
            surplus = len(self._held) - self._room
            if surplus > 0:
                self._begin, self._held = self._begin + surplus, self._held[surplus:]
            self._changed.notify_all()

    def append_silence(self, until: int) -> None:
        """Adds silence up to a sample, if less has arrived: what comes later comes behind it."""
        with self._changed:
            missing = until - self._begin - len(self._held)
            if missing > 0:
                self._held = np.concatenate((self._held, np.zeros(missing, np.float32)))

    def close(self) -> None:
        """Says that no more will come; whoever waits goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for(self, length: int, timeout: float | None = None) -> bool:
        """Waits until so many samples have arrived or the sound has ended; False if neither happened in time."""
        with self._changed:
            there = lambda: self._closed or self._begin + len(self._held) >= length  # noqa: E731
            return self._changed.wait_for(there, timeout)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, 1]; zeros before the start and behind what is there.

        Errors: ValueError for samples that are not kept any more.
        """
        with self._changed:
            begin, held = self._begin, self._held
        if max(start, 0) < begin:
            raise ValueError(f"sample {start} is asked for and samples before {begin} are not kept; keep more seconds")
        return ArraySound(held, self.rate).read(start - begin, stop - begin)

    def _resampled(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Returns samples at our rate; one resampler for all, so that pieces give what the whole gives."""
        import av

        if rate == self.rate:
            return samples
        if self._resamplers and rate not in self._resamplers:
            raise ValueError(
                f"samples at {rate} a second came, and {next(iter(self._resamplers))} before; keep one rate"
            )
        if rate not in self._resamplers:
            self._resamplers[rate] = av.AudioResampler(format="flt", layout="mono", rate=self.rate)
        if not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        parts = [part.to_ndarray().reshape(-1) for part in self._resamplers[rate].resample(frame)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Returns samples [N] of one channel in float32. Errors: ValueError for what is no sound."""
    samples = np.asarray(samples)
    if (
        samples.ndim not in (1, 2)
        or samples.dtype.kind not in "fi"
        or (samples.dtype.kind == "i" and samples.itemsize > 4)
    ):
        raise ValueError(
            f"sound is {samples.dtype} {samples.shape}; give [N] or [N, channels], floats or 16-bit numbers"
        )
    full = float(np.iinfo(samples.dtype).max) if samples.dtype.kind == "i" else 1.0
    mono = (samples.astype(np.float32) / full).reshape(len(samples), -1).mean(1)
    if not np.isfinite(mono).all():
        raise ValueError("the sound holds samples that are not finite numbers")
    return np.ascontiguousarray(mono)

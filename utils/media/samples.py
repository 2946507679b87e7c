"""Numbers as samples of a sound: what may be one, from one rate to another, and what is kept of those that come."""

from __future__ import annotations

from collections import deque

import numpy as np

LEAST_RATE, MOST_RATE = 1_000, 768_000  # samples a second
SHORT = 4_096  # samples; pieces up to here are joined


class Resampler:
    """Brings samples [N, channels] from one rate to another, piece by piece: the bits do not depend on the pieces."""

    def __init__(self, rate: int, to: int, channels: int):
        import av

        self.rate = rate
        self._channels = [av.AudioResampler(format="flt", layout="mono", rate=to) for _ in range(channels)]
        self._begun = False

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Returns the samples that are certain now; the last ones wait for what comes."""
        import av

        if not len(samples):
            return self._nothing()
        frames = [av.AudioFrame.from_ndarray(row[None], "flt", "mono") for row in np.ascontiguousarray(samples.T)]
        for frame in frames:
            frame.sample_rate = self.rate
        self._begun = True
        return self._convert(frames)

    def finish(self) -> np.ndarray:
        """Returns the last samples."""
        return self._convert([None] * len(self._channels)) if self._begun else self._nothing()

    def _nothing(self) -> np.ndarray:
        return np.zeros((0, len(self._channels)), np.float32)

    def _convert(self, frames: list) -> np.ndarray:
        rows = []
        for resampler, frame in zip(self._channels, frames, strict=True):
            parts = [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
            rows.append(np.concatenate([np.zeros(0, np.float32), *parts]))
        return np.stack(rows, 1)


def check_rate(rate: int) -> int:
    """Returns a rate in samples a second. Errors: ValueError for what is none."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer)) or not LEAST_RATE <= rate <= MOST_RATE:
        raise ValueError(f"{rate!r} is no rate of a sound; give {LEAST_RATE} to {MOST_RATE} samples a second")
    if rate != int(rate):
        raise ValueError(f"{rate!r} is no rate of a sound; give a whole number of samples a second")
    return int(rate)


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Returns samples [N, channels] in float32. Errors: ValueError for what is no sound.

    samples: [N] or [N, channels], floats in [-1, 1] or whole numbers of 8, 16 or 32 bits.
    """
    samples = np.asarray(samples)
    whole = samples.dtype.kind == "i" and samples.itemsize <= 4
    if samples.ndim not in (1, 2) or not (whole or samples.dtype.kind == "f") or 0 in samples.shape[1:]:
        raise ValueError(
            f"sound is {samples.dtype} {samples.shape}; give [N] or [N, channels], floats or 16-bit numbers"
        )
    full = 2.0 ** (8 * samples.itemsize - 1) if whole else 1.0
    found = (samples.astype(np.float32) / np.float32(full)).reshape(len(samples), *samples.shape[1:] or (1,))
    if not np.isfinite(found).all():
        raise ValueError("the sound holds samples that are not finite numbers")
    return found


class Pieces:
    """What is kept of a sound [N, channels] that comes in pieces; `begin` and `end` in samples.

    They stay apart: to join them would copy all that is kept, each time.
    """

    def __init__(self, channels: int):
        self.channels, self.begin, self.end = channels, 0, 0
        self._held = deque[np.ndarray]()

    def add(self, piece: np.ndarray) -> None:
        """Appends samples; short ones join the last piece, so that there are never many."""
        self.end += len(piece)
        if self._held and len(self._held[-1]) + len(piece) <= SHORT:
            piece = np.concatenate((self._held.pop(), piece))
        self._held.append(piece)

    def forget(self, before: int) -> None:
        """Drops the pieces that end before a sample."""
        while self._held and self.begin + len(self._held[0]) <= before:
            self.begin += len(self._held.popleft())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns samples [stop - start, channels]; zeros where none are kept."""
        found, end = np.zeros((stop - start, self.channels), np.float32), self.end
        for piece in reversed(self._held):
            begin = end - len(piece)
            if end <= start:
                break
            part = piece[max(start - begin, 0) : max(stop - begin, 0)]
            found[max(begin - start, 0) :][: len(part)] = part
            end = begin
        return found

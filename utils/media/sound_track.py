"""The sound of a video file: AAC packets of a sound, the same ones whoever asks for them, however often it is begun."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import numpy as np

RATE = 48_000  # of the file: what players and browsers take, and a packet of 21 ms is shorter than a frame's delay
PACKET = 1024  # samples of an AAC packet
BIT_RATE = 192_000


class Samples(Protocol):
    """A sound (utils/media/audio.py): float32 samples [N, channels] at `rate`, zeros where there are none."""

    rate: int
    channels: int

    def read(self, start: int, stop: int) -> np.ndarray: ...


class SoundTrack:
    """Encodes a sound as it is needed. fps: of the pictures; delay: frames by which they are shown late.

    The encoder is fed from the sound's start on, so packet n has the same bytes in a file that was resumed.
    count: packets that were handed out. Errors: ValueError for a sound of another rate or more than two channels.
    """

    def __init__(self, sound: Samples, fps: Fraction, delay: int):
        import av

        if sound.rate != RATE or sound.channels not in (1, 2):
            raise ValueError(
                f"a video's sound has {RATE} samples a second and one or two channels; this one has {sound.rate} and "
                f"{sound.channels}: resample it (FileSound(path, {RATE}, channels=2))"
            )
        self.sound, self.fps, self.count = sound, fps, 0
        self._layout = ("mono", "stereo")[sound.channels - 1]
        self._delay, self._stream = round(delay * RATE / fps), None
        self._encoder = av.CodecContext.create("aac", "w")
        self._encoder.sample_rate, self._encoder.layout, self._encoder.format = RATE, self._layout, "fltp"
        self._encoder.bit_rate, self._encoder.time_base = BIT_RATE, Fraction(1, RATE)
        self._encoder.options = {"flags": "+bitexact"}
        self._packets = self._encode()
        self._next = None

    def skip(self, count: int) -> None:
        """Drops so many packets: an earlier part of the file holds them."""
        while self.count < count:
            self._take()

    def add_to(self, container) -> None:
        """Gives a container that is begun a stream for the packets to come."""
        self._stream = container.add_stream("aac", rate=RATE, options={"flags": "+bitexact"})
        self._stream.layout, self._stream.bit_rate = self._layout, BIT_RATE

    def until(self, frame: int) -> Iterator:
        """Yields the packets whose sound begins before a frame of the video is due, ready for the container."""
        end = frame * RATE / self.fps
        while (packet := self._peek()).pts < end:
            self._take()
            packet.stream, packet.time_base = self._stream, Fraction(1, RATE)
            packet.pts += self._delay
            packet.dts = packet.pts
            yield packet

    def _peek(self):
        if self._next is None:
            self._next = next(self._packets)
        return self._next

    def _take(self) -> None:
        self._peek()
        self._next, self.count = None, self.count + 1

    def _encode(self) -> Iterator:
        """Yields packets without end: behind the sound there is silence."""
        import av

        for start in iter(range(0, 1 << 62, PACKET)):
            samples = np.ascontiguousarray(self.sound.read(start, start + PACKET).T.clip(-1, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            yield from self._encoder.encode(frame)

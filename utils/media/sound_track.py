"""The sound of a video file: AAC packets of a sound, the same ones whoever asks for them, however often it is begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

RATE = 48_000  # of the file: what players and browsers take, and a packet of 21 ms is shorter than a frame's delay
PACKET = 1024  # samples of an AAC packet
BIT_RATE = 192_000
TOGETHER = 48 * PACKET  # samples encoded at a time: at the end of each PyAV may lose an interrupt (Ctrl-C), so seldom


class Samples(Protocol):
    """A sound (utils/media/audio.py): float32 samples [N, channels] at `rate`, zeros where there are none."""

    rate: int
    channels: int

    def read(self, start: int, stop: int) -> np.ndarray: ...


class SoundTrack:
    """Encodes a sound as it is needed. fps: of the pictures; delay: frames by which they are shown late.

    The encoder is fed from the sound's start on, so packet n has the same bytes in a file that was resumed.
    count: packets that were handed out. Errors: ValueError for a sound of another rate or more than two channels, and
    when samples are taken that are not finite numbers.
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
        self._place, self._ready = 0, deque[Any]()  # the sample that comes next; packets that are not taken yet
        self._peek()  # now: an encoder whose first frame is interrupted (Ctrl-C) takes no other

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
        while self._peek().pts < end:
            packet = self._take()
            packet.stream, packet.time_base = self._stream, Fraction(1, RATE)
            packet.pts += self._delay
            packet.dts = packet.pts
            if packet.pts >= 0:  # above 93 frames a second the encoder's lead-in would begin before the file does
                yield packet

    def _peek(self):
        while not self._ready:
            self._encode()
        return self._ready[0]

    def _take(self):
        self._peek()
        self.count += 1
        return self._ready.popleft()

    def _encode(self) -> None:
        """Encodes the next samples; behind the sound there is silence. After an interrupt it can be called again."""
        import av

        samples = np.ascontiguousarray(self.sound.read(self._place, self._place + TOGETHER).T)
        if not np.isfinite(samples).all():
            raise ValueError(f"the sound holds samples that are not finite numbers after {self._place / RATE:.2f} s")
        frame = av.AudioFrame.from_ndarray(samples.clip(-1, 1), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._place, Fraction(1, RATE)
        self._place += TOGETHER
        self._ready += self._encoder.encode(frame)

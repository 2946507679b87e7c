"""Sounds as samples that are read where they are needed: from memory, from a file, or as they arrive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.media import video
from utils.media.samples import Pieces, Resampler, check_rate, check_samples

# As of videos: no playlists, which would open other files or addresses.
CONTAINERS = f"{video.CONTAINERS},wav,w64,aiff,au,caf,mp3,mp2,aac,flac,wv,ape,tta,ac3,eac3,dts,amr,amrnb,amrwb,gsm,voc"
SAFE = video.SAFE | {"format_whitelist": CONTAINERS}
LEAST_SECONDS = 0.1
MOST_AHEAD = 3_600  # seconds that may wait to be read


@dataclass(frozen=True)
class ArraySound:
    """Samples [N] or [N, channels] in memory, at `rate`: floats in [-1, 1], or whole numbers of 8, 16 or 32 bits.

    Errors: ValueError for what is no sound, samples that are not finite, or no possible rate.
    """

    samples: np.ndarray
    rate: int

    def __post_init__(self):
        object.__setattr__(self, "samples", check_samples(self.samples))
        object.__setattr__(self, "rate", check_rate(self.rate))

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.samples.shape[1]

    @property
    def length(self) -> int:
        """In samples."""
        return len(self.samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; zeros before the start and behind the end."""
        found = np.zeros((stop - start, self.channels), np.float32)
        first, last = max(start, 0), min(max(stop, 0), self.length)
        if last > first:
            found[first - start : last - start] = self.samples[first:last]
        return found

    def resampled(self, rate: int) -> ArraySound:
        """Returns the sound at another rate: what a file of these samples gives."""
        if rate == self.rate:
            return self
        convert = Resampler(self.rate, rate, self.channels)
        return ArraySound(np.concatenate((convert.feed(self.samples), convert.finish())), rate)


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
        if first < self._kept.begin and last > first:
            self._restart()
        while self._kept.end < last and (piece := next(self._pieces, None)) is not None:
            self._kept.add(piece)
            self._kept.forget(min(first, self._kept.end - self._room))
        return self._kept.read(start, stop)

    def _restart(self) -> None:
        self._kept, self._pieces = Pieces(self.channels), decode_sound(self.path, self.rate, self.channels)

    def _count(self) -> int:
        return sum(len(piece) for piece in decode_sound(self.path, self.rate, self.channels))


@dataclass(frozen=True)
class MixedSound:
    """Several sounds at once, of one rate and number of channels: their sum. Errors: ValueError for others."""

    sounds: tuple

    def __post_init__(self):
        kinds = sorted({(sound.rate, sound.channels) for sound in self.sounds})
        if len(kinds) != 1:
            listed = "; ".join(f"{rate} a second, {channels} channels" for rate, channels in kinds) or "none"
            raise ValueError(f"sounds of one rate and number of channels can be mixed; these are: {listed}")

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


@dataclass(frozen=True)
class SoundFrom:
    """Another sound from one of its samples on (negative: silence before it)."""

    sound: FileSound
    begin: int

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self.sound.rate

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.sound.channels

    @property
    def length(self) -> int:
        """In samples."""
        return self.sound.length - self.begin

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; zeros before the start and behind the end."""
        found = self.sound.read(start + self.begin, stop + self.begin)
        found[: max(-start, 0)] = 0
        return found


def sound_of_video(path: str | Path, rate: int = 16_000, channels: int = 1) -> SoundFrom:
    """Returns the sound of a video from the time of its first picture on.

    Errors: ValueError for a file that is not a video, whose sound ends before its first picture, or as `FileSound`.
    """
    sound = SoundFrom(FileSound(path, rate, channels), round(-video.sound_begins(path) * rate))
    if sound.length < LEAST_SECONDS * rate:
        raise ValueError(f"the sound of {path} ends before its first picture; give one with sound behind it")
    return sound


def open_sound(path: str | Path, rate: int = 16_000, channels: int = 1) -> FileSound | SoundFrom:
    """Returns the sound of a file: of a video from its first picture on, of any other from its first sample on.

    Errors: ValueError as `FileSound` and `sound_of_video`.
    """
    import av

    sound = FileSound(path, rate, channels)
    with av.open(f"file:{sound.path}", container_options=SAFE, metadata_errors="replace") as container:
        cover = av.stream.Disposition.attached_pic  # of an album, no picture of a video
        pictures = [stream for stream in container.streams.video if not stream.disposition & cover]
    return sound_of_video(path, rate, channels) if pictures else sound


def decode_sound(path: Path, rate: int, channels: int = 1) -> Iterator[np.ndarray]:
    """Yields a file's sound [N, channels] at `rate`, piece by piece.

    Errors: ValueError for a file that cannot be read, has no sound, changes its rate or channels, or holds samples that
    are not finite.
    """
    import av

    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a file with sound (wav, mp3, m4a, flac, ogg, mp4, ...)")
    try:
        # Titles may be in any alphabet of old.
        with av.open(f"file:{path}", container_options=SAFE, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound track; give a file with sound")
            stream, kind = container.streams.audio[0], None
            # The library's own downmix to one channel is louder than the mean that models are trained with.
            surround = "stereo" if channels == 2 and stream.codec_context.layout.nb_channels > 2 else None
            resampler = av.AudioResampler(format="flt", layout=surround, rate=rate)
            for frame in container.decode(stream):
                frame.pts = None  # gaps in the time stamps are no silence
                own = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
                if own != (kind := kind or own):
                    raise ValueError(f"{path} changes from {kind} to {own} within its sound; convert it to one of them")
                yield from _finite(path, resampler.resample(frame), channels)
            if kind:
                yield from _finite(path, resampler.resample(None), channels)
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as sound ({error.strerror}); it is damaged or of another kind"
        ) from error


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

    Everything that was appended counts on one clock from the first sample on; `length` is what is there now, at other
    rates a millisecond or two less than what came (the end of the resampling filter, which `close` brings). What is
    read behind it is silence, so who must not miss any waits with `wait_for`. Of what has been read the latest
    `kept_seconds` stay, and what waits to be read, an hour at most.
    """

    channels = 1

    def __init__(self, rate: int = 16_000, kept_seconds: float = 600.0):
        self.rate, self._room = check_rate(rate), int(kept_seconds * rate)
        self._kept, self._closed, self._asked = Pieces(self.channels), False, 0
        self._appending, self._changed = threading.Lock(), threading.Condition()
        self._source: tuple[int, int] | None = None  # rate and channels of what comes
        self._resampler: Resampler | None = None

    @property
    def length(self) -> int:
        """Samples that have arrived."""
        with self._changed:
            return self._kept.end

    def append(self, samples: np.ndarray, rate: int) -> None:
        """Adds samples [N] or [N, channels], floats in [-1, 1] or 16-bit numbers, at their own rate.

        Errors: ValueError for what is no sound, samples that are not finite, another rate or number of channels than
        before, behind the end, or an hour ahead of what is read; then none of them is added.
        """
        samples, rate = check_samples(samples), check_rate(rate)
        with self._appending:  # pieces that come at once are resampled one behind the other
            if self._closed:
                raise ValueError("the sound has ended; begin another one")
            waiting = (self._kept.end - self._asked) / self.rate + len(samples) / rate
            if waiting > MOST_AHEAD:
                raise ValueError(
                    f"{waiting:.0f} s of sound would wait; append {MOST_AHEAD} s ahead of the video at most"
                )
            if self._source is None:
                self._source = rate, samples.shape[1]
                if rate != self.rate:
                    self._resampler = Resampler(rate, self.rate, samples.shape[1])
            if rate != self._source[0]:
                raise ValueError(f"samples at {rate} a second came, and {self._source[0]} before; keep one rate")
            if samples.shape[1] != self._source[1]:
                raise ValueError(f"{samples.shape[1]} channels came, and {self._source[1]} before; keep their number")
            self._add(samples if self._resampler is None else self._resampler.feed(samples))

    def append_silence(self, until: int) -> None:
        """Adds silence up to a sample, if less has arrived: what comes later comes behind it."""
        with self._changed:
            self._add(np.zeros((max(until - self._kept.end, 0), 1), np.float32))

    def close(self) -> None:
        """Says that no more will come; whoever waits goes on. To close it again does nothing."""
        with self._appending:
            if self._resampler is not None and not self._closed:
                self._add(self._resampler.finish())
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def wait_for(self, length: int, timeout: float | None = None) -> bool:
        """Waits until so many samples have arrived or the sound has ended; False if neither happened in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._kept.end >= length, timeout)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, 1]; zeros before the start and behind what is there.

        Errors: ValueError for samples that are not kept any more.
        """
        with self._changed:
            if (begin := self._kept.begin) > max(start, 0):
                raise ValueError(
                    f"sample {start} is asked for and samples before {begin} are not kept; keep more seconds"
                )
            self._asked = max(start, 0)
            return self._kept.read(start, stop)

    def _add(self, samples: np.ndarray) -> None:
        """Keeps samples [N, channels] of our rate, and drops what was read and lies too far back."""
        with self._changed:
            self._kept.add(samples.mean(1, keepdims=True))
            self._kept.forget(min(self._asked, self._kept.end - self._room))
            self._changed.notify_all()

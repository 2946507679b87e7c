"""Reads videos as a player shows them: whole, as a few frames, frame by frame, or by time.

Frames are turned by the container's display matrix and their pixels made square, transparency lies over `BACKGROUND`,
and each has the time at which it is shown, from 0 at the first. `utils/media/mp4.py` and `gif.py` write videos.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from utils.media.image import BACKGROUND, compose, evenly_spaced, existing_file

logger = logging.getLogger(__name__)
# Containers that hold all they show. Playlists and descriptions of streams would open other files or addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,ivf,nut"
CONTAINERS += ",mxf,h264,hevc,av1,obu,m4v,yuv4mpegpipe,dv,rm,wtv,webp_pipe,webp"
SAFE = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
UNTIMED = ("avi",)  # sound and pictures are counted from the file's start, and nothing else is told
HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # numbers of ITU-T H.273
WITH_ALPHA = ("rgba", "bgra", "argb", "abgr", "yuva", "ya", "gbrap", "pal8")  # pixel formats; a palette may have some
WIDEST = 8.0  # of a pixel's aspect; more is damage
UNEVEN = 0.2  # of a frame's duration: farther from a constant rate, its frames are said to have times of their own


@dataclass(frozen=True)
class Clock:
    """When the frames of a video are shown. rate: frames per second that the container tells, on average."""

    rate: Fraction

    @property
    def step(self) -> float:
        """Seconds of one frame at that rate."""
        return float(1 / self.rate)


TimedFrame = tuple[float, np.ndarray]  # seconds from the first frame, uint8 [H, W, 3]


def read_video(path: str | Path, seconds: float | None = None, most: int = 0) -> tuple[np.ndarray, float]:
    """Returns (uint8 frames [P, H, W, 3], frames per second); only the first `seconds` or `most` frames if given.

    Errors: ValueError naming a file that is not a video.
    """
    with open_video(path) as (frames, rate):
        count = (most or None) if seconds is None else math.ceil(seconds * rate) + 1
        return np.stack(list(itertools.islice(frames, count))), float(rate)


def read_at(path: str | Path, count: int, fps: float) -> tuple[np.ndarray, float]:
    """Returns (the frames nearest in time to 0, 1 / fps, 2 / fps ..., [<= count, H, W, 3]; the video's seconds so far).

    Fewer than `count` where the video ends before. Of two frames as near, the earlier one.
    Errors: ValueError naming a file that is not a video.
    """
    picked: list[np.ndarray] = []
    with open_timed(path) as (frames, clock):
        for time, frame, moments in at_rate(frames, clock, fps):
            picked += [frame] * min(moments, count - len(picked))
            end = time + clock.step
            if len(picked) == count:
                break
    return np.stack(picked), end


def at_rate(frames: Iterator[TimedFrame], clock: Clock, fps: float) -> Iterator[tuple[float, np.ndarray, int]]:
    """Yields (seconds, frame, to how many of the moments 0, 1 / fps, 2 / fps ... it is the nearest) of each frame.

    Of two frames as near, the earlier one.
    """
    before, moments = next(frames), 0
    for after in itertools.chain(frames, (None,)):
        first = moments
        end = before[0] + clock.step - 1e-6
        while _is_nearer(before[0], after[0], moments / fps) if after else moments / fps < end:
            moments += 1
        yield *before, moments - first
        before = after


def _is_nearer(first: float, second: float, moment: float) -> bool:
    """True if `first` is as near to a moment as the later `second`."""
    return abs(moment - first) <= abs(second - moment) + 1e-9


def read_strip(path: str | Path, count: int) -> np.ndarray:
    """Returns `count` evenly spaced frames [<= count, H, W, 3] of a video of any length; errors: as `read_video`."""
    with _opened(path) as container:
        total = sum(1 for packet in container.demux(video=0) if packet.size) if container.streams.video else 0
    picks = set(evenly_spaced(total, count))
    with open_video(path) as (frames, _):
        return np.stack([frame for number, frame in enumerate(frames) if number in picks])


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Iterator[np.ndarray], Fraction]]:
    """A context: (iterator over uint8 frames [H, W, 3], frames per second), for videos too long for the memory.

    A video whose frames have times of their own is said to (see `open_timed`).
    Errors: ValueError naming a file that is not a video, also while the frames are taken.
    """
    with open_timed(path) as (frames, clock):
        yield _untimed(path, frames, clock), clock.rate


@contextlib.contextmanager
def open_timed(path: str | Path) -> Iterator[tuple[Iterator[TimedFrame], Clock]]:
    """A context: (iterator over (seconds, uint8 frame [H, W, 3]), the clock). Times rise, the first is 0.

    Errors: ValueError naming a file that is not a video, also while the frames are taken.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = _decode(Path(path), container, stream, float(rate))
        if (first := next(frames, None)) is None:
            raise ValueError(f"{path} holds a video stream without a frame")
        yield itertools.chain([first], frames), Clock(Fraction(rate))


def has_sound(path: str | Path) -> bool:
    """True if a video has a sound track. Errors: ValueError naming a file that cannot be read."""
    with _opened(path) as container:
        return bool(container.streams.audio)


def sound_begins(path: str | Path) -> float:
    """Returns by how many seconds the first sample of a video's sound is heard behind its first frame; may be negative.

    0 where the container keeps no such times. Errors: ValueError naming a file that is not a video, or has no sound.
    """
    times = []
    for kind in ("video", "audio"):
        with _opened(path) as container, _explain_damage(Path(path)):
            if not (streams := [stream for stream in container.streams if stream.type == kind]):
                raise ValueError(f"{path} holds no {'sound track' if kind == 'audio' else 'video stream'}")
            first = next(container.decode(streams[0]), None)
            times.append(None if first is None or container.format.name in UNTIMED else first.time)
    return 0.0 if None in times else float(times[1] - times[0])


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator:
    """A context: the open container of a file; nothing but that file is opened."""
    import av

    path = existing_file(path)
    with _explain_damage(path):
        container = av.open(f"file:{path}", container_options=SAFE, metadata_errors="replace")
    with container:
        yield container


def _untimed(path, frames: Iterator[TimedFrame], clock: Clock) -> Iterator[np.ndarray]:
    """Yields the frames alone; warns once where their times are not those of a constant rate."""
    told = False
    for number, (time, frame) in enumerate(frames):
        if not told and abs(time - number * clock.step) > UNEVEN * clock.step + number * 1e-4:
            told = True
            logger.warning("%s: frame %d is shown at %.3f s: its rate is not constant", path, number, time)
        yield frame


def _decode(path: Path, container, stream, rate: float) -> Iterator[TimedFrame]:
    """Yields (seconds, frame) in the order in which they are shown."""
    begin, last, look = None, -1.0, None
    with _explain_damage(path):
        for number, frame in enumerate(container.decode(stream)):
            look = look or _Look(path, stream, frame)
            time = number / rate if frame.time is None else float(frame.time)
            begin = time if begin is None else begin
            last = max(time - begin, last + 1e-6) if number else 0.0  # damaged times do not go back
            yield last, look.show(frame)


class _Look:
    """How the frames of a stream are shown: turned, with square pixels, on a background."""

    def __init__(self, path: Path, stream, first):
        self.path = path
        aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or 1.0
        if not 1 / WIDEST <= aspect <= WIDEST:
            raise ValueError(f"{path} tells pixels {aspect:g} times as wide as high; it is damaged")
        self.aspect = aspect
        self.turn = _turn(path, first)
        transfer = HDR.get(int(first.color_trc or 0)) or HDR.get(int(stream.codec_context.color_trc or 0))
        if transfer:
            logger.warning(
                "%s is HDR video with the transfer curve %s; it is read without tone mapping and looks grey: "
                "convert it to SDR (BT.709) first",
                path,
                transfer,
            )
        self.transparent, self.told = first.format.name.startswith(WITH_ALPHA), False

    def show(self, frame) -> np.ndarray:
        """Returns the frame as it is shown, uint8 [H, W, 3]."""
        height, width = frame.height, frame.width
        if self.aspect > 1:
            width = round(width * self.aspect)
        elif self.aspect < 1:
            height = round(height / self.aspect)
        if (height, width) != (frame.height, frame.width):
            frame = frame.reformat(width=width, height=height, interpolation="BICUBIC")
        if not self.transparent:
            return self.turn(frame.to_ndarray(format="rgb24"))
        pixels = frame.to_ndarray(format="rgba")
        if not self.told and pixels[..., 3].min() < 255:
            self.told = True
            logger.warning("%s is transparent in places; it is laid over %s", self.path, BACKGROUND)
        return self.turn(compose(pixels))


def _turn(path: Path, frame):
    """Returns what turns and mirrors a frame as the display matrix of the container says.

    The matrix maps a stored pixel (x, y) to where it is shown: (a x + c y, b x + d y). Angles between quarter turns
    become the nearest, with a warning.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) < 36:
        return lambda pixels: pixels
    a, b, _, c, d, *_ = struct.unpack("<9i", matrix[:36])
    if max(abs(a), abs(b)) == 0 or max(abs(c), abs(d)) == 0:
        return lambda pixels: pixels  # no matrix that shows anything: players leave the frame as it is
    swapped = abs(b) > abs(a)
    if min(abs(a), abs(b)) > 0.02 * max(abs(a), abs(b)):
        logger.warning("%s is to be shown turned by an angle between quarter turns; the nearest one is taken", path)
    across, down = (c, b) if swapped else (a, d)  # signs of the shown axes

    def turn(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.transpose(1, 0, 2) if swapped else pixels
        return np.ascontiguousarray(pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])

    return turn


@contextlib.contextmanager
def _explain_damage(path: Path):
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as a video ({error.strerror}); it is damaged or of another kind"
        ) from error

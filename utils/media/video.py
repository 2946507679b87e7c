"""Reads videos: whole, as a few frames, or frame by frame. `utils/media/mp4.py` and `gif.py` write them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from utils.media.image import evenly_spaced, existing_file


def read_video(path: str | Path, seconds: float | None = None, most: int = 0) -> tuple[np.ndarray, float]:
    """Returns (uint8 frames [P, H, W, 3], frames per second); only the first `seconds` or `most` frames if given.

    Errors: ValueError naming a file that is not a video.
    """
    with open_video(path) as (frames, rate):
        count = (most or None) if seconds is None else math.ceil(seconds * rate) + 1
        return np.stack(list(itertools.islice(frames, count))), float(rate)


def read_strip(path: str | Path, count: int) -> np.ndarray:
    """Returns `count` evenly spaced frames [<= count, H, W, 3] of a video of any length; errors: as `read_video`."""
    import av

    with _explain_damage(path), av.open(f"file:{existing_file(path)}") as container:
        total = sum(1 for packet in container.demux(video=0) if packet.size) if container.streams.video else 0
    picks = set(evenly_spaced(total, count))
    with open_video(path) as (frames, _):
        return np.stack([frame for number, frame in enumerate(frames) if number in picks])


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Iterator[np.ndarray], Fraction]]:
    """A context: (iterator over uint8 frames [H, W, 3], frames per second), for videos too long for the memory.

    Errors: ValueError naming a file that is not a video, also while the frames are taken.
    """
    import av

    path = existing_file(path)
    with _explain_damage(path):
        container = av.open(f"file:{path}")
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        frames = _decode(path, container, stream)
        if (first := next(frames, None)) is None:
            raise ValueError(f"{path} holds a video stream without a frame")
        yield itertools.chain([first], frames), stream.average_rate or stream.guessed_rate


def _decode(path, container, stream) -> Iterator[np.ndarray]:
    with _explain_damage(path):
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


@contextlib.contextmanager
def _explain_damage(path: Path):
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as a video ({error.strerror}); it is damaged or of another kind"
        ) from error

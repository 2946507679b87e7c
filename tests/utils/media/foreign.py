"""Videos as phones, browsers and cameras write them: turned, with wide pixels, with times of their own, HDR."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Degrees clockwise that a player turns, mirrored or not -> the matrix (a, b, c, d) of a pixel's place.
MATRICES = {
    (0, False): (1, 0, 0, 1),
    (90, False): (0, 1, -1, 0),
    (180, False): (-1, 0, 0, -1),
    (270, False): (0, -1, 1, 0),
    (0, True): (-1, 0, 0, 1),
    (90, True): (0, -1, -1, 0),
    (180, True): (1, 0, 0, -1),
    (270, True): (0, 1, 1, 0),
}


def corners(height: int = 64, width: int = 96) -> np.ndarray:
    """Returns a frame whose four quarters have a colour each: red, green / blue, white."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = (220, 30, 30)
    frame[: height // 2, width // 2 :] = (30, 200, 30)
    frame[height // 2 :, : width // 2] = (30, 30, 220)
    frame[height // 2 :, width // 2 :] = (240, 240, 240)
    return frame


def write(path: Path, frames, times=None, rate: int = 8, codec: str = "libx264", start: float = 0.0, **options) -> Path:
    """Writes uint8 frames [H, W, 3] shown at `times` (seconds; default: a constant rate), from `start` on.

    options: `pix_fmt`, `aspect` (of a pixel), `transfer` (a number of H.273); others are the encoder's.
    """
    pix_fmt, aspect = options.pop("pix_fmt", "yuv420p"), options.pop("aspect", None)
    transfer, base = options.pop("transfer", None), 1000 if path.suffix == ".webm" else 15360
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.time_base = Fraction(1, base)
        if aspect:
            stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if transfer:
            stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            time = number / rate if times is None else times[number]
            frame.pts, frame.time_base = round((start + time) * base), Fraction(1, base)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def set_matrix(path: Path, matrix: tuple[int, int, int, int], width: int, height: int) -> Path:
    """Writes a display matrix into the track header of an MP4, with the offsets that keep the picture in its frame."""
    data = bytearray(path.read_bytes())
    a, b, c, d = matrix
    x = (-a * width if a < 0 else 0) + (-c * height if c < 0 else 0)
    y = (-b * width if b < 0 else 0) + (-d * height if d < 0 else 0)
    one = 1 << 16
    values = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 1 << 30)
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and numbers, layer and volume
    data[place : place + 36] = values
    path.write_bytes(data)
    return path


def shown(frame: np.ndarray, turn: int, mirrored: bool) -> np.ndarray:
    """Returns a frame as a player shows it: mirrored left to right, then turned clockwise."""
    frame = frame[:, ::-1] if mirrored else frame
    return np.rot90(frame, -turn // 90)

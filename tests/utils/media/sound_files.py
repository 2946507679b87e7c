"""Real files with sound, written by PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tone(seconds: float, rate: int, channels: int = 1, pitch: float = 440.0) -> np.ndarray:
    """Returns samples [channels, N] in float."""
    return np.tile(0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate), (channels, 1)).astype("f4")


def save_sound(path: Path, rate: int = 48_000, codec: str = "pcm_s16le", samples: np.ndarray | None = None) -> Path:
    """Writes samples [channels, N] in float; None: a second of a tone."""
    samples = tone(1.0, rate) if samples is None else samples
    layout = LAYOUTS[len(samples)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.format = stream.codec_context.codec.audio_formats[0].name
        convert = av.AudioResampler(stream.format, layout, rate)
        for start in range(0, samples.shape[1], 1024):
            packed = np.ascontiguousarray(samples[:, start : start + 1024].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
            frame.sample_rate, frame.pts = rate, start
            for part in convert.resample(frame):
                file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path

"""Cepstra of a sound (MFCC) as SyncNet hears them: 13 of them, a hundred times a second.

Source: the Python package python_speech_features, 0.6, at its defaults, with which SyncNet was trained: frames of 25 ms
without a window, 26 triangles on the mel scale, the first cepstrum replaced by the frame's energy.
"""

from __future__ import annotations

import functools
import math

import numpy as np

RATE = 16_000  # samples a second
FRAME, STEP = 400, 160  # samples: 25 ms and 10 ms
NUM_CEPSTRA, NUM_TRIANGLES, FFT, LIFT = 13, 26, 512, 22
EMPHASIS = 0.97  # of the sample before, taken off


def mfcc(samples_N: np.ndarray) -> np.ndarray:
    """Returns the cepstra [T, 13] (float64) of a sound at 16 kHz; T = 1 + ceil((N - 400) / 160), 1 at least.

    Samples are on the scale of 16 bits (-32768 .. 32767). The last frame is filled up with zeros.
    Errors: ValueError for what is not one row of samples.
    """
    samples = np.asarray(samples_N, np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"the sound has the shape {list(samples.shape)}; give one row of samples")
    sharp = np.append(samples[:1], samples[1:] - EMPHASIS * samples[:-1])
    count = 1 + max(0, math.ceil((len(sharp) - FRAME) / STEP))
    padded = np.pad(sharp, (0, (count - 1) * STEP + FRAME - len(sharp)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::STEP]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    cepstra = _log(power @ _triangles().T) @ _cosines().T * _lifter()
    cepstra[:, 0] = _log(power.sum(1))
    return cepstra


def _log(values: np.ndarray) -> np.ndarray:
    """Returns the logarithm; that of silence is the one of the smallest step of float64."""
    return np.log(np.where(values == 0, np.finfo(np.float64).eps, values))


@functools.cache
def _triangles() -> np.ndarray:
    """Returns [26, 257]: how much each frequency counts in each triangle."""
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, NUM_TRIANGLES + 2) / 2595) - 1)
    corners = np.floor((FFT + 1) * hertz / RATE)
    left, middle, right = (corners[k : k + NUM_TRIANGLES, None] for k in range(3))
    place = np.arange(FFT // 2 + 1)
    rising, falling = (place - left) / (middle - left), (right - place) / (right - middle)
    inside = [(place >= left) & (place < middle), (place >= middle) & (place < right)]
    return np.select(inside, [rising, falling], 0.0)


@functools.cache
def _cosines() -> np.ndarray:
    """Returns the orthonormal cosine transform (DCT-II) [13, 26]."""
    angle = np.pi * np.outer(np.arange(NUM_CEPSTRA), 2 * np.arange(NUM_TRIANGLES) + 1) / (2 * NUM_TRIANGLES)
    scale = np.where(np.arange(NUM_CEPSTRA) == 0, math.sqrt(1 / NUM_TRIANGLES), math.sqrt(2 / NUM_TRIANGLES))
    return np.cos(angle) * scale[:, None]


@functools.cache
def _lifter() -> np.ndarray:
    return 1 + LIFT / 2 * np.sin(np.pi * np.arange(NUM_CEPSTRA) / LIFT)

"""Metrics of any video against a reference video."""

from __future__ import annotations

import numpy as np


def psnr(clip: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Returns the peak signal-to-noise ratio in dB of two uint8 arrays; NaN if the mask is empty.

    `mask` (boolean, the shape of the arrays without their channels) restricts it, e.g. to the
    foreground: on a mostly black video the plain value flatters a black answer.
    """
    if clip.shape != truth.shape:
        raise ValueError(f"psnr of {clip.shape} against {truth.shape}; give arrays of one shape")
    error = (clip.astype(np.float32) - truth.astype(np.float32)) ** 2
    if mask is not None:
        error = error[mask]
    if not error.size:
        return float("nan")
    return float(10 * np.log10(255.0**2 / max(float(error.mean(dtype=np.float64)), 1e-10)))

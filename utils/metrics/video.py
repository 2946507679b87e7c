"""Metrics of any video, alone (sharpness, flicker, colours) and against another one (PSNR, SSIM), frame by frame."""

from __future__ import annotations

import functools
import math

import numpy as np

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = (0.2126, 0.7152, 0.0722)  # BT.709, as our videos are tagged
MIDDLE = 128.0  # taken off before squaring, so that fp32 holds variances of bright pixels


def psnr(clip: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Returns the peak signal-to-noise ratio in dB of two uint8 arrays; NaN if the mask is empty.

    `mask` (boolean, the shape of the arrays without their channels) restricts it, e.g. to the
    foreground: on a mostly black video the plain value flatters a black answer.
    Equal arrays have 148 dB, so that means over clips stay finite.
    """
    if clip.shape != truth.shape:
        raise ValueError(f"psnr of {clip.shape} against {truth.shape}; give arrays of one shape")
    error = (clip.astype(np.float32) - truth.astype(np.float32)) ** 2
    if mask is not None:
        error = error[mask]
    if not error.size:
        return float("nan")
    return decibels(max(float(error.mean(dtype=np.float64)), 1e-10))


def decibels(square: float) -> float:
    """Returns the PSNR of a mean squared error in 8-bit levels; infinite for 0."""
    return 10 * math.log10(255.0**2 / square) if square > 0 else math.inf


def mean_square(frame: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean squared difference of two uint8 frames [H, W, 3], in levels squared."""
    return float(np.square(frame.astype(np.int32) - truth).mean())


def ssim(frame: np.ndarray, truth: np.ndarray) -> float:
    """Returns the structural similarity of two uint8 frames [H, W, 3], the mean over channels and pixels; 1 if equal.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13:
    Gaussian window of 11 x 11 and sigma 1.5, K 0.01 and 0.03, borders without a whole window left out.
    Differs from Wang: colour channels instead of grey, so that a wrong colour counts.
    Errors: ValueError for different shapes or frames smaller than the window.
    """
    import torch

    if frame.shape != truth.shape or frame.ndim != 3 or min(frame.shape[:2]) < SSIM_WINDOW:
        message = f"SSIM of {frame.shape} against {truth.shape}; give frames [H, W, 3] of one size"
        raise ValueError(f"{message}, {SSIM_WINDOW} pixels or more")
    x, y = (torch.from_numpy(np.ascontiguousarray(f.transpose(2, 0, 1))).float() - MIDDLE for f in (frame, truth))
    mean_x, mean_y, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    mean_x, mean_y = mean_x + MIDDLE, mean_y + MIDDLE
    light = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return float((light * structure).double().mean())


def _window_means(maps_NCHW):
    """Returns the means under the Gaussian window, smaller by 10 pixels on both axes."""
    weights = _gaussian(SSIM_WINDOW, SSIM_SIGMA)
    for axis in (2, 3):
        size = maps_NCHW.shape[axis] - SSIM_WINDOW + 1
        maps_NCHW = sum(w * maps_NCHW.narrow(axis, k, size) for k, w in enumerate(weights))
    return maps_NCHW


@functools.cache
def _gaussian(width: int, sigma: float) -> tuple[float, ...]:
    weights = [math.exp(-((k - width // 2) ** 2) / (2 * sigma**2)) for k in range(width)]
    return tuple(w / sum(weights) for w in weights)


def sharpness(frame: np.ndarray) -> float:
    """Returns the mean absolute difference of neighbouring pixels' luma, in levels; blur lowers it.

    frame: uint8 [H, W, 3], at least 2 x 2. Noise raises it too, so compare videos of one content.
    """
    luma = frame.astype(np.float32) @ np.asarray(LUMA, np.float32)
    return float((np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2)


def flicker(frame: np.ndarray, before: np.ndarray) -> float:
    """Returns the mean absolute difference of two successive uint8 frames [H, W, 3], in levels.

    Source: VBench, arXiv 2311.17982, temporal flickering. Motion counts too, so compare videos of one motion.
    """
    return float(np.abs(frame.astype(np.int16) - before).mean())


def brightness(frame: np.ndarray) -> float:
    """Returns the mean luma of a uint8 frame [H, W, 3], in levels."""
    return float((frame.mean((0, 1), dtype=np.float64) * LUMA).sum())


def saturation(frame: np.ndarray) -> float:
    """Returns the mean distance of a pixel's strongest from its weakest channel, in levels; 0 for grey."""
    return float((frame.max(-1) - frame.min(-1)).mean(dtype=np.float64))

"""The Frechet distance between two sets of features, and how sure it is.

The squared 2-Wasserstein distance of the Gaussians fitted to both sets. Source: arXiv 1706.08500, section 3; with
features of video: arXiv 1812.01717. It is biased: a finite set lies away from its own distribution, the more the
smaller it is, so a value only says something next to the value of real clips at the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 300  # of the bootstrap


@dataclass(frozen=True)
class Gaussian:
    """mean [..., D] and covariance [..., D, D], float64; leading axes are a batch."""

    mean: np.ndarray
    covariance: np.ndarray


def fit(features_MD: np.ndarray) -> Gaussian:
    """Returns the Gaussian of M >= 2 rows of features."""
    features = np.asarray(features_MD, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a Gaussian is fitted to rows of features, at least 2; got the shape {features.shape}")
    return Gaussian(features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1))


def frechet_distance(a: Gaussian, b: Gaussian) -> np.ndarray:
    """Returns |mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2); `b` may be a batch.

    By symmetric eigenvalues, so that covariances of fewer rows than features (rank-deficient ones) stay real.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = np.sqrt(np.clip(inner, 0, None)).sum(-1)
    spread = np.trace(a.covariance) + np.trace(b.covariance, axis1=-2, axis2=-1)
    return np.maximum(((a.mean - b.mean) ** 2).sum(-1) + spread - 2 * overlap, 0.0)


def interval(reference: Gaussian, features_NWD: np.ndarray, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Returns {mean, low, high}: the distance of N videos of W windows, and its 95 % interval over videos.

    `mean` is the estimate itself. A redrawn set holds fewer different videos, so its distance is larger; the interval
    is that of the redrawn distances around their own mean, moved to the estimate: it tells how the estimate scatters
    at this N, while its bias is told by real clips at the same N. All None for fewer than 2 videos.
    """
    num_videos = len(features_NWD)
    if num_videos < 2:
        return {"mean": None, "low": None, "high": None}
    picks = np.random.default_rng(seed).integers(num_videos, size=(draws, num_videos))
    counts = np.stack([np.bincount(row, minlength=num_videos) for row in picks])
    counts = np.concatenate([np.ones((1, num_videos)), counts])
    point, *redrawn = frechet_distance(reference, _moments(features_NWD - reference.mean, counts, reference.mean))
    low, high = np.percentile(redrawn, (2.5, 97.5)) - np.mean(redrawn)
    return {"mean": float(point), "low": float(max(point + low, 0.0)), "high": float(point + high)}


def _moments(centred_NWD, counts_KN, origin_D) -> Gaussian:
    """Returns the K Gaussians of the videos taken `counts` times; features come relative to `origin`.

    The covariance is divided by W (N - 1), not N W - 1: windows of one video are not independent.
    """
    num_videos, num_windows, width = centred_NWD.shape
    squares = np.einsum("nwd,nwe->nde", centred_NWD, centred_NWD).reshape(num_videos, -1)
    rows = num_videos * num_windows
    mean = counts_KN @ centred_NWD.sum(1) / rows
    square = (counts_KN @ squares).reshape(-1, width, width)
    covariance = (square - rows * mean[:, :, None] * mean[:, None]) / (num_windows * (num_videos - 1))
    return Gaussian(mean + origin_D, covariance)

"""Trains the digits codec: an `AutoencoderKLWan` by reconstruction + KL on rendered clips.

Why these numbers: with the log-variance started at 0 and full KL from step 0 every small codec
collapsed; with the variance started low and the KL faded in none did. Clips of growing length,
because a codec trained on 9 frames drifts in colour after frame 12.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from utils.data.digits import DigitsConfig, random_clip
from wan.vae import decode_features

LOG_VARIANCE_START = -5.0


@dataclass
class Stage:
    """Part of a training: from `start` (fraction of all steps) on, clips of `frames`, `batch` at a time."""

    start: float = 0.0
    frames: int = 17
    batch: int = 2


@dataclass
class CodecConfig:
    """Weights of the codec objective; `kl_ramp` = fractions of training between which beta rises."""

    beta: float = 3e-4
    kl_ramp: tuple[float, float] = (0.15, 0.5)
    foreground: float = 5.0  # extra weight of pixels that hold ink: 3 % of all
    stages: list[Stage] = field(
        default_factory=lambda: [Stage(0.0, 9, 4), Stage(0.35, 17, 2), Stage(0.75, 33, 1)]
    )


def init_codec(model) -> None:
    """Starts the log-variance half of the encoder's output at `LOG_VARIANCE_START`, in place."""
    with torch.no_grad():
        model.quant_conv.bias[model.config.z_dim :] = LOG_VARIANCE_START


def codec_clips(step: int, progress: float, config: CodecConfig, digits: DigitsConfig, seed: int) -> torch.Tensor:
    """Returns the pixels [B, 3, P, H, W] in [-1, 1] of one training step."""
    stage = max((s for s in config.stages if s.start <= progress), key=lambda s: s.start)
    clips = [random_clip(step * 16 + b, stage.frames, seed, digits)[0] for b in range(stage.batch)]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) * 2 - 1


def codec_loss(model, pixels_BCPHW, progress: float, config: CodecConfig, noise: torch.Generator | None = None):
    """L1 + L2 with weight on ink, + beta KL. Returns (loss, metrics); decoding is not clamped."""
    moments = model._encode(pixels_BCPHW)
    mean, log_variance = moments.chunk(2, 1)
    log_variance = log_variance.clamp(-30, 20)
    eps = torch.randn(mean.shape, generator=noise)
    z = mean + (0.5 * log_variance).exp() * eps
    decoded, _ = decode_features(model, model.post_quant_conv(z))
    ink = (pixels_BCPHW.amax(1, keepdim=True) > -0.9).float()
    error, weight = decoded - pixels_BCPHW, 1 + config.foreground * ink
    reconstruction = (weight * (error.abs() + error.square())).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    begin, end = config.kl_ramp
    beta = config.beta * min(1.0, max(0.0, (progress - begin) / (end - begin)))
    with torch.no_grad():
        square = (decoded.clamp(-1, 1) - pixels_BCPHW).square() / 4  # pixel range 1
        psnr = -10 * square.mean().log10()
        psnr_ink = -10 * ((square * ink).sum() / (3 * ink.sum()).clamp(min=1)).log10()
    return reconstruction + beta * kl, {"kl": kl.detach(), "psnr": psnr, "psnr_ink": psnr_ink}

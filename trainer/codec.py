"""Trains the digits codec: an `AutoencoderKLWan` by reconstruction + KL on rendered clips.

Why these numbers: with the log-variance started at 0 and full KL from step 0 every small codec
collapsed; with the variance started low and the KL faded in none did. Clips of growing length,
because a codec trained on 9 frames drifts in colour after frame 12.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from trainer.config import CodecConfig, TrainConfig
from trainer.optim import Optim
from utils.digits.world import DigitsConfig, random_clip
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng, seed_libraries
from wan.codec.vae import decode_features

LOG_VARIANCE_START = -5.0
STATISTICS_CLIPS = 48
STATISTICS_FRAMES = 33


def build_codec(
    config: CodecConfig, training: TrainConfig, rng: Rng, device: torch.device, layout: ParallelLayout
) -> Codec:
    """Returns the method; a codec starts from nothing."""
    if layout.world > 1:
        raise ValueError("a codec is trained by one process; start train.py without torchrun")
    return Codec(config, training.steps, rng, device)


class Codec:
    """The method of a codec training."""

    def __init__(self, config: CodecConfig, total: int, rng: Rng, device: torch.device):
        seed_libraries(rng.at("init", "codec"))
        self.config, self.total, self.rng, self.device = config, total, rng, device
        self.model = make_codec(config).to(device)
        self.optim = Optim(self.model, config.optim, total)

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Performs one update; returns metrics as tensors."""
        progress = step / self.total
        pixels = self.clips(step, progress).to(self.device)
        noise = self.rng.at("sample", step, "latent")
        loss, metrics = codec_loss(self.model, pixels, progress, self.config, noise)
        loss.backward()
        return {"loss": loss.detach(), **metrics, "grad_norm": self.optim.step(step)}

    def clips(self, step: int, progress: float) -> torch.Tensor:
        """Returns the pixels [B, 3, P, H, W] in [-1, 1] of one step."""
        stage = max((s for s in self.config.stages if s.start <= progress), key=lambda s: s.start)
        most = max(s.batch for s in self.config.stages)
        numbers = [step * most + b for b in range(stage.batch)]
        return _clips(numbers, stage.frames, 1 + self.rng.seed, self.config.digits)

    def state_dict(self) -> dict:
        """Returns weights and optimiser."""
        return {"model": self.model.state_dict(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optim.load_state_dict(state["optim"])

    def export(self, folder: str | Path) -> None:
        """Writes `vae/` as diffusers does, with the latents' mean and scale measured on real clips."""
        mean, std = latent_statistics(self.model, self.config.digits)
        model = copy.deepcopy(self.model).to(torch.bfloat16)  # the training may go on
        model.register_to_config(latents_mean=mean, latents_std=std)
        model.save_pretrained(Path(folder) / "vae")


def make_codec(config: CodecConfig):
    """Returns a fresh AutoencoderKLWan whose log-variance starts at `LOG_VARIANCE_START`."""
    from diffusers import AutoencoderKLWan

    from wan.codec.vae_layers import patch_vae_for_speed

    model = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * config.z_dim,
        latents_std=[1.0] * config.z_dim,
    )
    with torch.no_grad():
        model.quant_conv.bias[config.z_dim :] = LOG_VARIANCE_START
    return patch_vae_for_speed(model)


def codec_loss(model, pixels_BCPHW, progress: float, config: CodecConfig, noise):
    """L1 + L2 with weight on ink, + beta KL. Returns (loss, metrics); decoding is not clamped."""
    mean, log_variance = model._encode(pixels_BCPHW).chunk(2, 1)
    log_variance = log_variance.clamp(-30, 20)
    z = mean + (0.5 * log_variance).exp() * noise.normal(mean.shape).to(mean)
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


@torch.no_grad()
def latent_statistics(model, digits: DigitsConfig) -> tuple[list[float], list[float]]:
    """Returns (mean per channel, scale per channel) of raw latents of real clips.

    One scale for all channels: a channel that carries little would be blown up to noise otherwise.
    """
    device = next(model.parameters()).device
    batches = [range(i, i + 4) for i in range(0, STATISTICS_CLIPS, 4)]
    z = [model._encode(_clips(b, STATISTICS_FRAMES, 0, digits).to(device)).chunk(2, 1)[0] for b in batches]
    z = torch.cat(z)
    mean = z.mean((0, 2, 3, 4))
    scale = (z - mean.view(1, -1, 1, 1, 1)).square().mean().sqrt().item()
    return mean.tolist(), [scale] * z.shape[1]


def _clips(indices, num_frames: int, seed: int, digits: DigitsConfig) -> torch.Tensor:
    clips = [random_clip(i, num_frames, seed, digits)[0] for i in indices]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) * 2 - 1

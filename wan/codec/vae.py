"""The streaming face over diffusers' `AutoencoderKLWan` (Wan 2.1 and 2.2 alike).

The first latent frame holds one pixel frame, every later one four. Decoding is causal: the state between two calls
holds the last inputs of each causal convolution. They are never written in place, so a snapshot of a stream is the
state itself.

Source: Wan2.1 causal VAE (arXiv 2503.20314, section 4.1); `tests/parity` kind J.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from wan.checkpoint.library import load_vae
from wan.codec.base import DecoderState, LibraryVAE, resolve_device
from wan.codec.last_frame import last_frame_features
from wan.config import VAEConfig
from wan.encoders.text import DTYPES

TEMPORAL_STRIDE = 4  # pixel frames per later latent frame, fixed by the architecture


class StreamingVAE(LibraryVAE):
    """Encodes and decodes normalised latents [B, F, C, h, w] <-> pixels [B, P, 3, H, W] in [-1, 1].

    Inputs are moved to the VAE's device; results are returned on the input's device. Several threads may use it.
    """

    def __init__(self, model: nn.Module, config: VAEConfig | None = None):
        super().__init__(model, config)
        c = model.config
        shape = (1, c.z_dim, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(c.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(c.latents_std).view(shape), persistent=False)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per later latent frame and cell."""
        return TEMPORAL_STRIDE, self.spatial_stride, self.spatial_stride

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.z_dim

    @property
    def frames_per_pass(self) -> int:
        """Latent frames that the decoder takes together after a stream's first."""
        return self.config.frames_per_pass

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along height and width."""
        return self.model.config.scale_factor_spatial

    def encode(self, pixels_BPCHW: torch.Tensor) -> torch.Tensor:
        """Returns the normalised mean latents, fp32 [B, F, C, h, w], of 4n+1 pixel frames."""
        check_pixel_frames(pixels_BPCHW.shape[1])
        x = pixels_BPCHW.transpose(1, 2).to(self.device, self.dtype)
        if self.config.tiling:
            latents = self.model.encode(x).latent_dist.mode()
        else:
            rows = x.split(1) if self.config.slicing else (x,)
            latents = torch.cat([encode_features(self.model, row)[0] for row in rows])
        return self.normalise(latents).to(pixels_BPCHW.device)

    def encode_stream(
        self, pixels_BPCHW: torch.Tensor, state: DecoderState | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Encodes the next 4n pixel frames of a stream, or its first 4n+1 (`state` None), as `encode` does all.

        Returns (latents, fp32 [B, F, C, h, w]; the state to go on with). Errors: ValueError for another number.
        """
        check_pixel_frames(pixels_BPCHW.shape[1] + (state is not None))
        x = pixels_BPCHW.transpose(1, 2).to(self.device, self.dtype)
        latents, state = encode_features(self.model, x, state)
        return self.normalise(latents).to(pixels_BPCHW.device), state

    def normalise(self, latents_BCFHW: torch.Tensor) -> torch.Tensor:
        """Raw VAE latents [B, C, F, h, w] -> unit-scale latents [B, F, C, h, w]."""
        return ((latents_BCFHW.float() - self.mean) / self.std).transpose(1, 2)

    def denormalise(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Inverse of `normalise`, in the VAE's dtype."""
        return (latents_BFCHW.transpose(1, 2).float() * self.std + self.mean).to(self.dtype)

    def decode(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns fp32 pixels [B, P, 3, H, W] in [-1, 1] of a whole clip, P = 4F - 3."""
        if self.config.tiling:
            pixels = self.model.decode(self.denormalise(latents_BFCHW.to(self.device))).sample
            return pixels.float().transpose(1, 2).to(latents_BFCHW.device)
        rows = latents_BFCHW.split(1) if self.config.slicing else (latents_BFCHW,)
        return torch.cat([self.decode_stream(row)[0] for row in rows])

    def last_frame(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns the last pixel frame [B, 1, 3, H, W] of what `decode` returns, for less than its work."""
        if self.config.tiling:
            return self.decode(latents_BFCHW)[:, -1:]
        rows = latents_BFCHW.split(1) if self.config.slicing else (latents_BFCHW,)
        return torch.cat([self._last_frame(row) for row in rows]).to(latents_BFCHW.device)

    def _last_frame(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        x = self.model.post_quant_conv(self.denormalise(latents_BFCHW.to(self.device)))
        return _pixels(self.model, last_frame_features(self.model, x)).clamp(-1, 1).float().transpose(1, 2)

    def decode_stream(
        self, latents_BFCHW: torch.Tensor, state: DecoderState | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Decodes the next latents of a stream; `state` None starts one.

        Returns (pixels [B, P, 3, H, W] fp32 in [-1, 1], the state to go on with).
        """
        if self.config.tiling:
            raise ValueError("tiling decodes whole clips; a stream holds few frames at a time: set vae.tiling=false")
        device = self.device
        if state is not None:  # a snapshot's may come from elsewhere
            state = tuple(e.to(device) if isinstance(e, torch.Tensor) else e for e in state)
        x = self.model.post_quant_conv(self.denormalise(latents_BFCHW.to(device)))
        pixels, state = decode_features(self.model, x, state, self.config.frames_per_pass)
        return pixels.clamp(-1, 1).float().transpose(1, 2).to(latents_BFCHW.device), state


def encode_features(model, x_BCPHW, state: DecoderState | None = None) -> tuple[torch.Tensor, DecoderState]:
    """Returns (raw mean latents [B, C, F, h, w] of 4n+1 pixel frames, or of 4n behind others; a stream's state).

    Differs from the library's `encode` by a cache of its own: that of the model would mix two threads.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify

    if model.config.patch_size is not None:
        x_BCPHW = patchify(x_BCPHW, patch_size=model.config.patch_size)
    first = 0 if state else 1  # frames of a first latent frame
    cache = list(state or [None] * sum(isinstance(m, WanCausalConv3d) for m in model.encoder.modules()))
    parts = [x_BCPHW[:, :, :first], *x_BCPHW[:, :, first:].split(TEMPORAL_STRIDE, 2)]
    parts = [model.encoder(part, feat_cache=cache, feat_idx=[0]) for part in parts if part.shape[2]]
    return model.quant_conv(torch.cat(parts, 2)).chunk(2, 1)[0], tuple(cache)


def decode_features(model, x_BCFHW, state: DecoderState | None = None, frames_per_pass: int = 1):
    """Runs the decoder over a stream, unclamped (training a codec needs the gradient there).

    Returns (pixels [B, 3, P, H, W], the state to go on with).
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    first = state is None
    cache = [None] * sum(isinstance(m, WanCausalConv3d) for m in model.decoder.modules()) if first else list(state)
    num_frames = x_BCFHW.shape[2]
    borders = [0, *range(1 if first else frames_per_pass, num_frames, frames_per_pass), num_frames]
    pixels = []
    for begin, end in zip(borders[:-1], borders[1:], strict=True):
        x = x_BCFHW[:, :, begin:end]
        pixels.append(model.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=first and begin == 0))
    return _pixels(model, torch.cat(pixels, 2)), tuple(cache)


def _pixels(model, x_BCPHW) -> torch.Tensor:
    """Unfolds pixels from channels where the model folds them."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    patch = model.config.patch_size
    return x_BCPHW if patch is None else unpatchify(x_BCPHW, patch_size=patch)


def check_pixel_frames(num_frames: int):
    """Raises ValueError unless `num_frames` = 4n + 1."""
    if num_frames % TEMPORAL_STRIDE != 1:
        below = max(1, num_frames - (num_frames - 1) % TEMPORAL_STRIDE)
        raise ValueError(f"the VAE takes 4n+1 pixel frames, not {num_frames}; use {below} or {below + TEMPORAL_STRIDE}")


def open_vae(path: str | Path, config: VAEConfig | None = None, device: torch.device | str = "cpu") -> StreamingVAE:
    """Returns the frozen VAE at `path` (any layout that `load_vae` reads), in the dtype that `config` names.

    device: where the rest of the model runs; `config.device` may name another. Errors: ValueError if it is not there.
    """
    config = config or VAEConfig()
    device = resolve_device("vae.device", config.device, device)
    vae = StreamingVAE(load_vae(path, DTYPES[config.dtype]), config)
    return vae.eval().requires_grad_(False).to(device)

"""CogVideoX's VAE behind the face of a codec: diffusers' `AutoencoderKLCogVideoX`, in its own chunks.

The group norms run over the frames of a chunk, so the chunks are part of the result: 8 pixel frames, or 2 latent ones,
and the first takes what is left over. A clip is decoded as a whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from wan.checkpoint import tensor_file
from wan.checkpoint.identify import find_kind
from wan.checkpoint.library import DIFFUSERS_NOTES, check_sizes, of_library
from wan.checkpoint.scales import check_types
from wan.checkpoint.weights import load_strict
from wan.codec.base import DecoderState, LibraryVAE, resolve_device
from wan.codec.vae import check_pixel_frames
from wan.config import VAEConfig
from wan.encoders.text import DTYPES

KIND = "vae, cogvideox"
NOTES = ("latents_mean", "latents_std", "shift_factor")  # of its configuration, which nothing reads


class CogVideoXVAE(LibraryVAE):
    """Latents [B, F, C, h, w], scaled as the network takes them <-> pixels [B, P, 3, H, W] in [-1, 1], P = 4F - 3."""

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per later latent frame and cell."""
        side = 2 ** (len(self.model.config.block_out_channels) - 1)
        return int(self.model.config.temporal_compression_ratio), side, side

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.latent_channels

    @property
    def frames_per_pass(self) -> int:
        """Latent frames that run through the decoder together: as trained."""
        return self.model.num_latent_frames_batch_size

    @torch.no_grad()
    def encode(self, pixels_BPCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled mean latents [B, F, C, h, w], in fp32 or wider, of 4n+1 pixel frames.

        Errors: ValueError for another number of frames.
        """
        check_pixel_frames(pixels_BPCHW.shape[1])
        x = pixels_BPCHW.transpose(1, 2).to(self.device, self.dtype)
        latents = self.model.encode(x).latent_dist.mode() * self.model.config.scaling_factor
        return latents.to(_wide(latents)).transpose(1, 2).to(pixels_BPCHW.device)

    @torch.no_grad()
    def decode(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns the pixels of a whole clip, in fp32 or wider."""
        z = latents_BFCHW.transpose(1, 2).to(self.device, self.dtype) / self.model.config.scaling_factor
        pixels = self.model.decode(z).sample
        return pixels.to(_wide(pixels)).transpose(1, 2).to(latents_BFCHW.device)

    def last_frame(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns the last pixel frame [B, 1, 3, H, W] of what `decode` returns."""
        return self.decode(latents_BFCHW)[:, -1:]

    def decode_stream(
        self, latents_BFCHW: torch.Tensor, state: DecoderState | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Decodes a whole clip, clamped to [-1, 1]. Errors: ValueError for what is to go on with a stream."""
        if state is not None:
            raise ValueError("the VAE of CogVideoX decodes whole clips; write pipeline.name=bidirectional")
        return self.decode(latents_BFCHW).clamp(-1, 1), ("whole",)


def build_vae(config: dict, device: str = "cpu") -> nn.Module:
    """Returns diffusers' VAE of a configuration of its own keys."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.device(device):
        return AutoencoderKLCogVideoX.from_config(config)


def open_vae(path: str | Path, config: VAEConfig | None = None, device="cpu") -> CogVideoXVAE:
    """Returns the frozen VAE of a diffusers folder.

    Errors: ValueError if it is another VAE, or does not fit its configuration.
    """
    from diffusers import AutoencoderKLCogVideoX

    path, config = Path(path), config or VAEConfig()
    state = tensor_file.read(path)
    if find_kind(state) != KIND:
        raise ValueError(f"{path} holds {find_kind(state)} weights, no CogVideoX VAE: {', '.join(list(state)[:5])}")
    check_types(state, str(path))
    folder = path if path.is_dir() else path.parent
    told, where = tensor_file.read_config(folder), f"{folder}/config.json"
    if not told:
        raise ValueError(f"{folder} holds no config.json, which tells the VAE's sizes; take the whole folder")
    sizes = check_sizes(told, AutoencoderKLCogVideoX, (*DIFFUSERS_NOTES, *NOTES), where)
    with of_library(where):
        model = build_vae(sizes, "meta")
    state = {name: tensor.to(DTYPES[config.dtype]) for name, tensor in state.items()}
    load_strict(model, state, f"the VAE {path}", assign=True)
    place = resolve_device("vae.device", config.device, device)
    return CogVideoXVAE(model.eval().requires_grad_(False).to(place), config)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)

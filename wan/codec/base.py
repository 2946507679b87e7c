"""What turns latents into pixels, seen from outside: one face for a model's own VAE and for other decoders."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from wan.config import VAEConfig

DecoderState = tuple[torch.Tensor | str | None, ...]


@runtime_checkable
class StreamingDecoder(Protocol):
    """Decodes normalised latents [B, F, C, h, w] into fp32 pixels [B, P, 3, H, W] in [-1, 1], as a stream.

    strides: pixel frames, rows and columns of a latent frame and cell. first_pixel_frames: pixel frames of a stream's
    first latent frame; each later one has strides[0]. latent_channels: C.
    frames_per_pass: latent frames that run through the network together.
    own_device: where it runs on a thread of its own, next to the generation; None: in line, where the latents lie.
    """

    strides: tuple[int, int, int]
    latent_channels: int
    first_pixel_frames: int = 1
    frames_per_pass: int = 1
    own_device: torch.device | None = None

    def decode_stream(
        self, latents_BFCHW: torch.Tensor, state: DecoderState | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Decodes the next latents of a stream; `state` None starts one.

        Returns (pixels, the state to go on with). A state is never written to, so a snapshot of a stream is the state
        itself; it may be given back on another device. Any chunking of the latents decodes to the same pixels.
        """


@runtime_checkable
class Codec(StreamingDecoder, Protocol):
    """A decoder that encodes as well: a model's own VAE."""

    def encode(self, pixels_BPCHW: torch.Tensor) -> torch.Tensor:
        """Returns normalised latents, fp32 [B, F, C, h, w]."""

    def encode_stream(
        self, pixels_BPCHW: torch.Tensor, state: DecoderState | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Encodes the next frames of a stream; `state` None starts one. Returns (latents, the state to go on with)."""

    def decode(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns the pixels of a whole clip."""

    def last_frame(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns the last pixel frame [B, 1, 3, H, W] of what `decode` returns."""


class LibraryVAE(nn.Module):
    """What the VAEs of diffusers share as codecs: the network, its configuration, where and how it computes."""

    first_pixel_frames = 1

    def __init__(self, model: nn.Module, config: VAEConfig | None = None):
        super().__init__()
        self.model, self.config = model, config or VAEConfig()
        if self.config.tiling:
            model.enable_tiling()
        if self.config.slicing:
            model.enable_slicing()

    @property
    def own_device(self) -> torch.device | None:
        """Where it decodes on a thread of its own, or None: in line, with the model."""
        return self.device if self.config.apart else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which is the compute dtype."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device


def check_fit(name: str, decoder: StreamingDecoder, vae: StreamingDecoder) -> None:
    """Raises ValueError for a decoder that takes other latents than the model's VAE makes, or makes another video."""
    facts = ("strides", "latent_channels", "first_pixel_frames")
    wrong = [fact for fact in facts if getattr(decoder, fact) != getattr(vae, fact)]
    if wrong:
        listed = ", ".join(f"{fact} {getattr(decoder, fact)} instead of {getattr(vae, fact)}" for fact in wrong)
        raise ValueError(f"decoder.name={name} does not fit this model: {listed}; take another one, or vae")


def resolve_device(key: str, wanted: str, device: torch.device | str) -> torch.device:
    """Returns the device that the knob `key` names, or `device` for auto. Errors: ValueError if it is not there."""
    named, have = torch.device(device if wanted == "auto" else wanted), torch.cuda.device_count()
    if wanted != "auto" and named.type == "cuda" and named.index >= have:
        names = ", ".join(["auto", "cpu", *(f"cuda:{n}" for n in range(have))])
        raise ValueError(f"{key} is {wanted} and this machine has {have} CUDA devices; write {names}")
    return named

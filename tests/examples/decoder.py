"""A decoder of your own: three latent channels are the colours. It is this file and one line of `DECODERS`:

    DECODERS["nearest"] = "tests.examples.decoder:NearestConfig"

A recipe then chooses it by `decoder: {name: nearest}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class NearestConfig:
    """gain: the contrast. device: auto = with the model, in line | cpu, cuda:1, ... = there, on a thread of its own."""

    gain: float = 0.5
    device: str = "auto"

    def problems(self):
        """Yields what is wrong with the knobs."""
        if not re.fullmatch(r"auto|cpu|cuda:\d+", self.device):
            yield f"decoder.device is {self.device!r}; write auto, cpu, or a GPU, e.g. cuda:1"

    def build(self, vae, device):
        """Returns the decoder. vae: the model's. device: where the model runs."""
        from wan.codec.base import resolve_device  # here: a configuration is read without torch

        where = resolve_device("decoder.device", self.device, device)
        return NearestDecoder(self.gain, vae.strides, vae.latent_channels, None if self.device == "auto" else where)


class NearestDecoder:
    """Shows each cell of a latent frame as one square; frames between two latents fade from one to the next.

    The state is the latent before, so that a stream may be cut anywhere.
    """

    first_pixel_frames, frames_per_pass = 1, 1

    def __init__(self, gain, strides, latent_channels, own_device):
        self.gain, self.strides, self.latent_channels, self.own_device = gain, strides, latent_channels, own_device

    def decode_stream(self, latents_BFCHW, state=None):
        """Returns (pixels [B, P, 3, H, W] in [-1, 1], the state to go on with)."""
        import torch

        colours = (self.gain * latents_BFCHW[:, :, :3].float()).clamp(-1, 1)
        colours = colours.repeat_interleave(self.strides[1], 3).repeat_interleave(self.strides[2], 4)
        last = None if state is None else state[0].to(colours.device)
        frames = []
        for now in colours.split(1, 1):
            steps = [1.0] if last is None else [n / self.strides[0] for n in range(1, self.strides[0] + 1)]
            frames += [now if step == 1 else last + step * (now - last) for step in steps]
            last = now
        return torch.cat(frames, 1), (last,)

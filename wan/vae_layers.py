"""Two layers of diffusers' `AutoencoderKLWan` with the same results for less work, on the same weights."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import nn
from torch.nn import functional as F


class CausalConv3d(WanCausalConv3d):
    """Pads rows and columns within the convolution: theirs copies the whole input into a larger one before it."""

    def forward(self, x_BCFHW: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        left, _, top, _, past, _ = self._padding
        if past and cache_x is not None:
            x_BCFHW = torch.cat([cache_x.to(x_BCFHW.device), x_BCFHW], 2)
            past -= cache_x.shape[2]
        if past:
            x_BCFHW = F.pad(x_BCFHW, (0, 0, 0, 0, past, 0))
        return F.conv3d(x_BCFHW, self.weight, self.bias, self.stride, (0, top, left))


class ChannelNorm(WanRMS_norm):
    """Root mean square over channels; in fp32 scaled in one pass. torch's norm over a strided axis is slow on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)  # its roundings are part of the recorded numbers
        norm = x.square().sum(1 if self.channel_first else -1, keepdim=True).sqrt().clamp_min(1e-12)
        return x * (self.scale * self.gamma / norm) + self.bias


LEAN = {WanCausalConv3d: CausalConv3d, WanRMS_norm: ChannelNorm}


def make_lean(model: nn.Module) -> nn.Module:
    """Gives the layers of a built model these forward passes, in place; returns it."""
    for module in model.modules():
        module.__class__ = LEAN.get(type(module), type(module))
    return model

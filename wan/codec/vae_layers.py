"""Two layers of diffusers' `AutoencoderKLWan` with the same results for less work, on the same weights."""

from __future__ import annotations

from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F


def patch_vae_for_speed(model: nn.Module) -> nn.Module:
    """Replaces the forward of a built model's causal convolutions and norms by those below, in place; returns it."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

    for module in model.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = MethodType(causal_conv3d, module)
        elif isinstance(module, WanRMS_norm):
            module.forward = MethodType(channel_norm, module)
    return model


def causal_conv3d(layer, x_BCFHW: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """Pads rows and columns within the convolution; the library's layer copies the input into a larger one first."""
    left, _, top, _, past, _ = layer._padding
    if past and cache_x is not None:
        x_BCFHW = torch.cat([cache_x.to(x_BCFHW.device), x_BCFHW], 2)
        past -= cache_x.shape[2]
    if past:
        x_BCFHW = F.pad(x_BCFHW, (0, 0, 0, 0, past, 0))
    return F.conv3d(x_BCFHW, layer.weight, layer.bias, layer.stride, (0, top, left))


def channel_norm(layer, x: torch.Tensor) -> torch.Tensor:
    """Root mean square over channels; in fp32 scaled in one pass. torch's norm over a strided axis is slow on a CPU."""
    if x.dtype not in (torch.float32, torch.float64):
        return type(layer).forward(layer, x)  # its roundings are part of the recorded numbers
    norm = x.square().sum(1 if layer.channel_first else -1, keepdim=True).sqrt().clamp_min(1e-12)
    return x * (layer.scale * layer.gamma / norm) + layer.bias

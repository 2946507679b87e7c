"""Small layers shared by all Wan blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in fp32, cast back before the weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm without parameters, in the dtype of x (fp32 inside the kernel)."""
    return functional.layer_norm(x, x.shape[-1:], None, None, eps)


def sinusoid(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """Embeds `timestep` (1000-scale, any shape) as [..., dim]: cosines, then sines, in float64."""
    half = dim // 2
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double().unsqueeze(-1) * rates
    return torch.cat((angles.cos(), angles.sin()), -1)


def by_row(x_BLD: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Views tokens [B, L, D] as [B, R, L/R, D], so that the values of a modulation row broadcast."""
    return x_BLD.unflatten(1, (num_rows, -1))


def modulate(x_BLD: torch.Tensor, shift_BRD: torch.Tensor, scale_BRD: torch.Tensor) -> torch.Tensor:
    """Returns x (1 + scale) + shift, R rows of both for equal stretches of x; dtype of the modulation."""
    stretches = by_row(x_BLD, shift_BRD.shape[1])
    return (stretches * (1 + scale_BRD.unsqueeze(2)) + shift_BRD.unsqueeze(2)).flatten(1, 2)


def gated_sum(x_BLD: torch.Tensor, update_BLD: torch.Tensor, gate_BRD: torch.Tensor) -> torch.Tensor:
    """Returns x + update * gate, R gates for equal stretches of x."""
    gated = by_row(update_BLD, gate_BRD.shape[1]) * gate_BRD.unsqueeze(2)
    return x_BLD + gated.flatten(1, 2)

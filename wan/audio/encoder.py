"""From the hidden states of an audio encoder to tokens of a latent frame (`casual_audio_encoder`, sic).

A latent frame hears nine feature frames: those of its own four pixel frames and the five before. Each is encoded from
these nine alone; the published encoder, a causal convolution that repeats the first frame, gives the same numbers.
Source: Wan2.2, wan/modules/s2v/audio_utils.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from wan.condition import FEATURES_HEARD
from wan.spec import S2VSpec


class CausalConv(nn.Module):
    """A 1-D convolution over time; the input brings the past that it needs."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, 3, stride)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """[B, T, C] -> [B, (T - 3) // stride + 1, C_out], normalised and activated."""
        x = self.conv(x_BTC.transpose(1, 2)).transpose(1, 2)
        return functional.silu(functional.layer_norm(x, x.shape[-1:], eps=1e-6))


class MotionEncoder(nn.Module):
    """Two ways through shared convolutions: tokens of their own (local), and one for the whole frame (global)."""

    def __init__(self, spec: S2VSpec):
        super().__init__()
        quarter, self.num_tokens = spec.dim // 4, spec.num_audio_token
        self.conv1_local = CausalConv(spec.audio_dim, quarter * spec.num_audio_token)
        self.conv1_global = CausalConv(spec.audio_dim, quarter)
        self.conv2 = CausalConv(quarter, spec.dim // 2, stride=2)
        self.conv3 = CausalConv(spec.dim // 2, spec.dim, stride=2)
        self.final_linear = nn.Linear(spec.dim, spec.dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, spec.dim))

    def forward(self, x_BTC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 9, audio_dim] -> tokens [B, num_audio_token + 1, D], global token [B, D]."""
        local = self.conv1_local.conv(x_BTC.transpose(1, 2)).unflatten(1, (self.num_tokens, -1))
        local = functional.silu(functional.layer_norm(local.transpose(2, 3), (local.shape[2],), eps=1e-6))
        tokens = self.conv3(self.conv2(local.flatten(0, 1))).view(len(x_BTC), self.num_tokens, -1)
        tokens = torch.cat((tokens, self.padding_tokens[0].expand(len(x_BTC), -1, -1).to(tokens.dtype)), 1)
        return tokens, self.final_linear(self.conv3(self.conv2(self.conv1_global(x_BTC))))[:, 0]


class AudioEncoder(nn.Module):
    """Mixes the hidden states by learned weights, then encodes each latent frame."""

    def __init__(self, spec: S2VSpec):
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, spec.audio_layers, 1, 1), 0.01))
        self.encoder = MotionEncoder(spec)

    def forward(self, heard_BAFTLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each latent frame hears [B, A, F, 9, L, C] -> tokens [B, A, F, n + 1, D], global ones [B, A, F, D]."""
        batch, (frames, layers) = heard_BAFTLC.shape[:3], heard_BAFTLC.shape[3:5]
        if (frames, layers) != (FEATURES_HEARD, self.weights.shape[1]):
            raise ValueError(
                f"{frames} feature frames of {layers} hidden states given for a latent frame; the model hears "
                f"{FEATURES_HEARD} of {self.weights.shape[1]}"
            )
        weights = functional.silu(self.weights[0, :, 0, 0].to(self._wide))
        mixed = torch.einsum("...lc,l->...c", heard_BAFTLC.to(self._wide), weights / weights.sum())
        tokens, whole = self.encoder(mixed.flatten(0, 2).to(self.weights.dtype))
        return tokens.unflatten(0, batch), whole.unflatten(0, batch)

    @property
    def _wide(self) -> torch.dtype:
        """fp32 at least: a sum over layers in half precision loses what tells them apart."""
        return torch.promote_types(self.weights.dtype, torch.float32)

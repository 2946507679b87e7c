"""After some blocks the video's tokens read the sound of their latent frame (`audio_injector`).

Source: Wan2.2, wan/modules/s2v/audio_utils.py (AudioInjector_WAN).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from wan.attention.call import AttentionCall
from wan.attention.dispatch import attend
from wan.blocks import Attention
from wan.spec import S2VSpec

NORM_EPS = 1e-5  # of the adaptive norm; the blocks have another


@dataclass(frozen=True)
class Sound:
    """What a forward's frames hear: tokens [B, A, F, T, D], global tokens [B, A, F, D] of A speakers.

    masks: [B, A, F or 1, L, 1], how much of a speaker's part each of this process's tokens of a frame takes; None: all.
    """

    tokens: torch.Tensor
    whole: torch.Tensor
    masks: torch.Tensor | None = None


class AdaptiveNorm(nn.Module):
    """LayerNorm whose shift and scale (in this order) follow the sound of the frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x_BFLD: torch.Tensor, whole_BAFD: torch.Tensor) -> torch.Tensor:
        """Returns [B, A, F, L, D]."""
        shift, scale = self.linear(functional.silu(whole_BAFD)).unsqueeze(3).chunk(2, -1)
        return functional.layer_norm(x_BFLD, x_BFLD.shape[-1:], eps=NORM_EPS)[:, None] * (1 + scale) + shift


class AudioAttention(Attention):
    """Cross-attention of a frame's tokens to the audio tokens of that frame."""

    def forward(self, h_BAFLD: torch.Tensor, tokens_BAFTD: torch.Tensor, layer: int) -> torch.Tensor:
        """Returns [B, A, F, L, D]."""
        sizes = h_BAFLD.shape[:3]
        q = self.heads(self.norm_q(self.q(h_BAFLD))).flatten(0, 2)
        k, v = self.heads(self.norm_k(self.k(tokens_BAFTD))), self.heads(self.v(tokens_BAFTD))
        read = attend(AttentionCall(q, k.flatten(0, 2), v.flatten(0, 2), layer), self.config)
        return self.o(read.flatten(2)).unflatten(0, sizes)


class AudioInjector(nn.Module):
    """One adaptive norm and one attention for each of the spec's `audio_inject_layers`."""

    def __init__(self, spec: S2VSpec):
        super().__init__()
        self.number = {layer: number for number, layer in enumerate(spec.audio_inject_layers)}
        self.injector = nn.ModuleList(AudioAttention(spec) for _ in self.number)
        self.injector_adain_layers = nn.ModuleList(AdaptiveNorm(spec.dim) for _ in self.number)

    def read(self, layer: int, x_BFLD: torch.Tensor, sound: Sound) -> torch.Tensor:
        """Returns what the tokens of each frame add to themselves, [B, F, L, D]: all speakers' parts summed."""
        number, dtype = self.number[layer], sound.tokens.dtype
        h = self.injector_adain_layers[number](x_BFLD.to(dtype), sound.whole)
        out = self.injector[number](h, sound.tokens, layer)
        return (out if sound.masks is None else out * sound.masks).sum(1) if out.shape[1] > 1 else _one(out, sound)


def _one(out_BAFLD: torch.Tensor, sound: Sound) -> torch.Tensor:
    return out_BAFLD[:, 0] if sound.masks is None else out_BAFLD[:, 0] * sound.masks[:, 0]

"""A discriminator on the critic's features: register tokens read the tokens of some blocks and are classified.

Source: Self-Forcing, wan/modules/model.py (classify mode); registers: arXiv 2309.16588.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.config import DiscriminatorConfig
from wan.adapters import tap
from wan.attention.call import AttentionCall
from wan.attention.dispatch import attend
from wan.blocks import Attention
from wan.condition import Condition
from wan.context import Full
from wan.layers import RMSNorm, layer_norm
from wan.spec import TransformerSpec

TIME_SCALE = 10.0  # of the time embedding next to the registers, which are far larger at the start


class Reader(Attention):
    """One register token attends to all video tokens, then passes a feed-forward; both residual."""

    def __init__(self, spec: TransformerSpec, ffn_dim: int):
        super().__init__(spec)
        self.eps = spec.eps
        self.norm3 = nn.LayerNorm(spec.dim, spec.eps)
        self.ffn = nn.Sequential(nn.Linear(spec.dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, spec.dim))

    def forward(self, token_B1D: torch.Tensor, x_BLD: torch.Tensor) -> torch.Tensor:
        x = self.norm3(x_BLD)
        q, k = self.heads(self.norm_q(self.q(token_B1D))), self.heads(self.norm_k(self.k(x)))
        read = attend(AttentionCall(q, k, self.heads(self.v(x))), self.config)
        token = token_B1D + self.o(read.flatten(2))
        return token + self.ffn(layer_norm(token, self.eps))


class Discriminator(nn.Module):
    """Logits [B, num_class] of noisy latents, through the critic's transformer and one reader per tapped block."""

    def __init__(self, spec: TransformerSpec, config: DiscriminatorConfig):
        super().__init__()
        self.layers: Sequence[int] = config.layers
        self.lr_scale, self.time_embedding = config.lr_scale, config.time_embedding
        count, dim = len(config.layers), spec.dim
        self.registers = nn.Parameter(0.02 * torch.randn(count, dim))
        self.register_norm = RMSNorm(dim, spec.eps)
        self.readers = nn.ModuleList(Reader(spec, config.ffn_dim) for _ in config.layers)
        width = (count + config.time_embedding) * dim
        self.classify = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, config.num_class)
        )

    def forward(self, critic, x_BFCHW, sigma_BF, condition: Condition) -> torch.Tensor:
        """Runs the critic once and classifies its features. sigma: one level per sample where its embedding is read."""
        with tap(critic.transformer, self.layers) as tapped:
            critic(x_BFCHW, sigma_BF, condition, Full())
        tokens = self.register_norm(self.registers).expand(len(x_BFCHW), -1, -1)
        join = critic.transformer.sequence.join
        read = [
            reader(tokens[:, i : i + 1], join(tapped.features[layer], tapped.tokens))
            for i, (layer, reader) in enumerate(zip(self.layers, self.readers, strict=True))
        ]
        if self.time_embedding:
            read.append(TIME_SCALE * tapped.time[:, :1].to(read[0]))
        return self.classify(torch.cat(read, 1).flatten(1))

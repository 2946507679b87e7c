"""The network of the example family: Wan's blocks, each followed by a gain."""

from __future__ import annotations

import torch
from torch import nn

from wan.blocks import Block
from wan.transformer import WanTransformer


class GainBlock(Block):
    """x = gain * Block(x), one gain per channel."""

    def __init__(self, spec):
        super().__init__(spec)
        self.gain = nn.Parameter(torch.full((spec.dim,), spec.start_gain))

    def forward(self, x_BLD: torch.Tensor, *rest) -> torch.Tensor:
        return self.gain * super().forward(x_BLD, *rest)


class GainTransformer(WanTransformer):
    """The Wan transformer with other blocks."""

    def __init__(self, spec):
        super().__init__(spec)
        self.blocks = nn.ModuleList(GainBlock(spec) for _ in range(spec.num_layers))
        self.init_weights()

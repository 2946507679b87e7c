"""An adapter in full: after some blocks it adds a projected signal to the tokens of each frame.

    adapter = attach(transformer, SignalAdapter(layers=(0, 4), width=3, dim=transformer.spec.dim))
    denoiser(x, sigma, SignalCondition(text, signal=signal_BFS), context)

The transformer calls it after every block, cached or masked, inside activation checkpointing and on each rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wan.condition import Condition, part
from wan.sequence import index
from wan.tokens import TokenLayout


@dataclass(frozen=True, eq=False)
class SignalCondition(Condition):
    """Text, and a signal [B, F, S] with one row for each frame of the video; a pass gets those of its frames."""

    signal: torch.Tensor | None = part(frames=1, default=None)


class SignalAdapter(nn.Module):
    """x += project(signal of the token's frame), for the video; tokens of other kinds stay as they are."""

    regions = ("add",)  # tensor code alone: what `compile_blocks` compiles

    def __init__(self, layers: tuple[int, ...], width: int, dim: int):
        super().__init__()
        self.layers = layers
        self.project = nn.Linear(width, dim, bias=False)

    def after_block(self, layer: int, x: torch.Tensor, tokens: TokenLayout, condition: SignalCondition):
        """Returns this rank's tokens x [B, L / size, D], with the signal after the chosen blocks."""
        if layer not in self.layers:
            return x
        silent = condition.signal[:, :1] * 0
        signal = [  # of the frames of all runs: [B, F, S]
            condition.signal if run.kind in ("video", "clean") else silent.expand(-1, run.num_frames, -1)
            for run in tokens.runs
        ]
        return self.add(x, torch.cat(signal, 1), index(tokens, "frame_of_token", x.device))

    def add(self, x_BLD: torch.Tensor, signal_BFS: torch.Tensor, frame_L: torch.Tensor) -> torch.Tensor:
        """Returns x plus each token's row of the projected signal."""
        return x_BLD + self.project(signal_BFS.to(x_BLD.dtype)).index_select(1, frame_L)


def attach(transformer: nn.Module, adapter: nn.Module, name: str = "signal") -> nn.Module:
    """Adds the adapter and its weights (as `name.*`) before compilation and sharding; returns it."""
    transformer.add_module(name, adapter)
    transformer.adapters = (*transformer.adapters, adapter)
    return adapter

"""Exponential moving average of the trainable parameters, in fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class EmaConfig:
    """decay 0 = no average; updates begin at `start_step` from the weights of then."""

    decay: float = 0.99
    start_step: int = 0

    def check(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}; write a number in [0, 1), 0 = none")


class Ema:
    """shadow <- decay shadow + (1 - decay) weights, after each optimiser step."""

    def __init__(self, module: torch.nn.Module, config: EmaConfig):
        self.module, self.config = module, config
        self.shadow: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the shadow towards the weights; before `start_step` there is none."""
        if not self.config.decay or step < self.config.start_step:
            return
        for name, weight in self.module.named_parameters():
            if not weight.requires_grad:
                continue
            if name not in self.shadow:
                self.shadow[name] = weight.detach().float().clone()
            else:
                self.shadow[name].lerp_(weight.detach().float(), 1 - self.config.decay)

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the module's state dict with averages in place of the averaged weights."""
        state = self.module.state_dict()
        return {name: self.shadow.get(name, value).to(value.dtype) for name, value in state.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the shadow."""
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` returned."""
        device = next(self.module.parameters()).device  # a checkpoint is read to the CPU
        self.shadow = {k: v.to(device, copy=True) for k, v in state.items()}

"""Exponential moving average of the trainable parameters, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config import EmaConfig
from utils.parallel.fsdp import reshard


class Ema:
    """shadow <- decay shadow + (1 - decay) weights, after each optimiser step."""

    def __init__(self, module: torch.nn.Module, config: EmaConfig):
        self.module, self.config, self.started = module, config, False
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad and config.decay]
        # There from the start, sharded like the weights: what a checkpoint is read into.
        self._average = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in trained}

    @property
    def shadow(self) -> dict[str, torch.Tensor]:
        """Name -> average; empty until there is one."""
        return self._average if self.started else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the shadow towards the weights; before `start_step` there is none."""
        if not self.config.decay or step < self.config.start_step:
            return
        share = 1 - self.config.decay if self.started else 1.0  # 1: becomes the weights, to the bit
        for name, weight in self.module.named_parameters():
            if name in self._average:
                self._average[name].lerp_(weight.detach().float(), share)
        self.started = True

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the module's state dict with averages in place of the averaged weights."""
        state = self.module.state_dict()
        return {name: self.shadow.get(name, value).to(value.dtype) for name, value in state.items()}

    @contextmanager
    def swapped_in(self, averaged: bool, dtype: torch.dtype) -> Iterator[None]:
        """A context in which the module itself carries its trained weights as an export in `dtype` would hold them.

        averaged: their averages, where there are any. Written in place, so optimisers and shards keep their tensors;
        after the context, or an error in it, the module has its own weights again.
        """
        reshard(self.module)
        shadow = self.shadow if averaged else {}
        trained = [(shadow.get(n, w), w) for n, w in self.module.named_parameters() if w.requires_grad]
        own: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for values, weight in trained:
                own.append((weight.detach().clone(), weight))
                _write(weight, values.detach().to(dtype))
            yield
        finally:
            reshard(self.module)
            for kept, weight in own:
                _write(weight, kept)

    def state_dict(self) -> dict:
        """Returns the averages, and whether they have begun; nothing where none are kept."""
        return {"started": self.started, "average": dict(self._average)} if self.config.decay else {}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned; tensors are copied, so that each stays sharded as it is.

        Errors: ValueError if it averages other parameters.
        """
        average = state.get("average", {})
        if average.keys() != self._average.keys():
            raise ValueError(f"it averages {len(average)} parameters, ema here {len(self._average)}")
        self.started = state.get("started", False)
        for name, values in average.items():
            _write(self._average[name], values)


@torch.no_grad()
def _write(weight: torch.Tensor, values: torch.Tensor) -> None:
    weight.copy_(values)

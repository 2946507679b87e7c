"""One network, one loss: source -> loss -> backward -> step (flow matching, ODE regression)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model import LOSSES
from trainer import SOURCES
from trainer.ema import Ema, EmaConfig
from trainer.optim import Optim, OptimConfig
from trainer.roles import RoleConfig, Roles, export_transformer
from utils.config import one_of
from utils.rng import Rng
from wan.options import TextConfig


@dataclass
class RegressConfig:
    """A regression: the generator, where samples come from, what is minimised, how."""

    generator: RoleConfig = field(default_factory=RoleConfig)
    source: object = one_of(SOURCES, default="latents")
    loss: object = one_of(LOSSES, default="flow")
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def build(self, model: str, total: int, rng: Rng, device: torch.device) -> Regress:
        """Returns the method; source and loss are matched before any network is built."""
        source, loss = self.source.build(), self.loss.build()
        missing = loss.needs - source.fills - {"generator"}
        if missing:
            names = f"loss {self.loss.name!r} needs {sorted(missing)}, source {self.source.name!r}"
            raise ValueError(f"{names} does not fill it; take another of the two")
        loss.check_spans(source.spans)
        if "trajectory" in loss.needs:
            loss.check_trajectory(source.num_states, source.sigmas)
        return Regress(self, Roles.build(model, self.generator, self.text, rng, device), source, loss, total, rng)


class Regress:
    """The method of a regression: `step`, and the state that a checkpoint holds."""

    def __init__(self, config: RegressConfig, roles: Roles, source, loss, total: int, rng: Rng):
        self.config, self.roles, self.source, self.loss, self.rng = config, roles, source, loss, rng
        self.optim = Optim(roles.generator.transformer, config.optim, total)
        self.ema = Ema(roles.generator.transformer, config.ema)
        self.last_prompts = ()

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Performs one update; returns metrics as tensors."""
        sample = self.source.next(step, self.roles, self.rng)
        self.last_prompts = sample.prompts
        loss, metrics = self.loss(sample, self.roles, self.rng)
        loss.backward()
        metrics["grad_norm"] = self.optim.step(step)
        self.roles.generator.transformer.weights_version += 1
        self.ema.update(step)
        return metrics

    def state_dict(self) -> dict:
        """Returns weights, average and optimiser."""
        generator = self.roles.generator.state_dict()
        return {"generator": generator, "ema": self.ema.state_dict(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""
        self.roles.generator.load_state_dict(state["generator"])
        self.ema.load_state_dict(state["ema"])
        self.optim.load_state_dict(state["optim"])

    def export(self, folder) -> None:
        """Writes the weights (the average where there is one) in the layout that inference reads."""
        export_transformer(folder, self.roles.generator.transformer, self.ema.weights())

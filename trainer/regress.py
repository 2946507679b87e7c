"""One network, one loss: source -> loss -> backward -> step (flow matching, ODE regression)."""

from __future__ import annotations

import torch

from trainer.accumulate import backward
from trainer.config import RegressConfig, TrainConfig
from trainer.ema import Ema
from trainer.export import export_generator
from trainer.optim import Optim
from trainer.roles import Roles
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng
from wan.family import write_config


def build_regress(
    config: RegressConfig, training: TrainConfig, rng: Rng, device: torch.device, layout: ParallelLayout
) -> Regress:
    """Returns the method; source and loss are built before any network."""
    source, loss = config.source.build(training.generation), config.loss.build(training.generation)
    if "trajectory" in config.loss.needs:
        loss.check_trajectory(source.num_states, source.sigmas)
    layout.check_batch(config.source.batch, config.accumulate)
    roles = Roles.build(training.model, config, rng, device, layout)
    return Regress(config, roles, source, loss, training, rng)


class Regress:
    """The method of a regression: `step`, and the state that a checkpoint holds."""

    def __init__(self, config: RegressConfig, roles: Roles, source, loss, training: TrainConfig, rng: Rng):
        self.config, self.roles, self.source, self.loss, self.rng = config, roles, source, loss, rng
        self.generation, total = training.generation, training.steps
        self.optim = Optim(roles.generator.transformer, config.optim, total)
        self.ema = Ema(roles.generator.transformer, config.ema)
        # start of a metric's name -> the prompts that it was measured on
        self.last_prompts: dict[str, tuple[str, ...]] = {}

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Performs one update; returns metrics as tensors."""
        parts = self.config.accumulate
        metrics, self.last_prompts[""] = backward(self.source, self.loss, self.roles, self.rng, step, parts)
        metrics |= {"grad_norm": self.optim.step(step), **self.roles.measured()}
        self.roles.generator.transformer.weights_version += 1
        self.ema.update(step)
        return metrics

    def state_dict(self) -> dict:
        """Returns the trained weights, their average and the optimiser."""
        return {
            "spec": write_config(self.roles.generator.spec),
            "generator": self.optim.weights(),
            "ema": self.ema.state_dict(),
            "optim": self.optim.state_dict(),
            "cursor": self.source.cursor(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""
        self.optim.load_weights(state["generator"])
        self.ema.load_state_dict(state["ema"])
        self.optim.load_state_dict(state["optim"])
        self.source.go_on_from(state["cursor"])

    def export(self, folder) -> None:
        """Writes the weights (the average where there is one) in the layout that inference reads."""
        spec, role = self.roles.generator.spec, self.config.generator
        export_generator(folder, spec, self.ema.weights(), role, self.generation)

"""Score distillation: the generator learns from teacher and critic, the critic follows the generator.

Every step updates the critic; every n-th one (`critic_updates_per_generator_update`) updates the generator first, on
a batch of its own. Each update draws a fresh sample: with gradient for the generator, without for the critic.
Source: DMD2 (arXiv 2405.14867) section 4; Self-Forcing, trainer/distillation.py.
"""

from __future__ import annotations

import torch

from trainer.accumulate import backward
from trainer.config import DistillConfig, TrainConfig
from trainer.ema import Ema
from trainer.export import export_generator
from trainer.optim import Optim
from trainer.roles import Roles
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng
from wan.family import write_config


def build_distill(
    config: DistillConfig, training: TrainConfig, rng: Rng, device: torch.device, layout: ParallelLayout
) -> Distill:
    """Returns the method; source and loss are built before any network."""
    source, loss = config.source.build(training.generation), config.loss.build(training.generation)
    layout.check_batch(config.source.batch, config.accumulate)
    networks = Roles.for_distillation(training.model, config, rng, device, layout)
    return Distill(config, networks, source, loss, training, rng)


class Distill:
    """The method of a distillation."""

    def __init__(self, config: DistillConfig, roles: Roles, source, loss, training: TrainConfig, rng: Rng):
        self.config, self.roles, self.source, self.loss, self.rng = config, roles, source, loss, rng
        self.generation, total = training.generation, training.steps
        self.optim = Optim(roles.generator.transformer, config.optim, total)
        self.critic_modules, scales = torch.nn.ModuleList([roles.critic.transformer]), {}
        if roles.discriminator is not None:
            self.critic_modules.append(roles.discriminator)
            scales["1."] = roles.discriminator.lr_scale
        self.critic_optim = Optim(self.critic_modules, config.critic_optim, total, scales)
        self.ema = Ema(roles.generator.transformer, config.ema)
        # start of a metric's name -> the prompts that it was measured on
        self.last_prompts: dict[str, tuple[str, ...]] = {"generator_": (), "": ()}

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Performs one critic update, and before it a generator update where one is due."""
        metrics = self.generator_step(step) if step % self.config.critic_updates_per_generator_update == 0 else {}
        return {**metrics, **self.critic_step(step)}

    def generator_step(self, step: int) -> dict[str, torch.Tensor]:
        """Samples with gradient and moves the generator; gradients of critic and discriminator are discarded."""
        parts = self.config.accumulate
        metrics, prompts = backward(self.source, self.loss, self.roles, self.rng, 2 * step, parts)
        self.last_prompts["generator_"] = prompts
        self.critic_modules.zero_grad(set_to_none=True)  # SiD and GAN differentiate through them
        metrics |= {"grad_norm": self.optim.step(step), **self.roles.measured()}
        self.roles.generator.transformer.weights_version += 1
        self.ema.update(step)
        return {f"generator_{name}": value for name, value in metrics.items()}

    def critic_step(self, step: int) -> dict[str, torch.Tensor]:
        """Samples without gradient and moves the critic (and discriminator)."""
        parts, loss = self.config.accumulate, self.loss.critic
        metrics, prompts = backward(self.source, loss, self.roles, self.rng, 2 * step + 1, parts, with_grad=False)
        self.last_prompts[""] = prompts
        metrics |= {"critic_grad_norm": self.critic_optim.step(step), **self.roles.measured()}
        self.roles.critic.transformer.weights_version += 1
        return metrics

    def state_dict(self) -> dict:
        """Returns the trained weights, their average, both optimisers, and what the source keeps between steps."""
        return {
            "spec": write_config(self.roles.generator.spec),
            "generator": self.optim.weights(),
            "judges": self.critic_optim.weights(),
            "ema": self.ema.state_dict(),
            "optim": self.optim.state_dict(),
            "critic_optim": self.critic_optim.state_dict(),
            "cursor": self.source.cursor(),
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""
        self.optim.load_weights(state["generator"])
        self.critic_optim.load_weights(state["judges"])
        for part in ("ema", "optim", "critic_optim"):
            getattr(self, part).load_state_dict(state[part])
        self.source.go_on_from(state["cursor"])
        shares = self.roles.layout.shares(range(self.config.source.batch), self.config.accumulate)
        self.source.load_state_dict(state.get("source", {}), shares, self.roles)

    def export(self, folder) -> None:
        """Writes the generator (its average where there is one) in the layout that inference reads."""
        spec, role = self.roles.generator.spec, self.config.generator
        export_generator(folder, spec, self.ema.weights(), role, self.generation)

"""Score distillation: the generator learns from teacher and critic, the critic follows the generator.

Every step updates the critic; every `ratio`-th step updates the generator first, on a batch of its
own. Each update draws a fresh sample: with gradient for the generator, without for the critic.
Source: DMD2 (arXiv 2405.14867) section 4; Self-Forcing, trainer/distillation.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model import OBJECTIVES
from trainer import SOURCES
from trainer.ema import Ema, EmaConfig
from trainer.optim import Optim, OptimConfig
from trainer.roles import RoleConfig, Roles, export_transformer
from utils.config import one_of
from utils.rng import Rng
from wan.options import TextConfig, VAEConfig


@dataclass
class DistillConfig:
    """A distillation: three networks, where samples come from, what is minimised, how."""

    generator: RoleConfig = field(default_factory=RoleConfig)
    teacher: RoleConfig = field(default_factory=RoleConfig)
    critic: RoleConfig = field(default_factory=RoleConfig)
    source: object = one_of(SOURCES, default="rollout")
    loss: object = one_of(OBJECTIVES, default="dmd")
    optim: OptimConfig = field(default_factory=OptimConfig)
    critic_optim: OptimConfig = field(default_factory=OptimConfig)
    ratio: int = 5  # critic updates per generator update
    ema: EmaConfig = field(default_factory=EmaConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    negative_prompt: str = ""

    def check(self):
        if self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}; write 1 or more critic updates per generator update")

    def build(self, model: str, total: int, rng: Rng, device: torch.device) -> Distill:
        """Returns the method; source and loss are matched before any network is built."""
        source, loss = self.source.build(), self.loss.build()
        roles = {"generator", "teacher", "critic"} | ({"discriminator"} if self.loss.name == "gan" else set())
        missing = (loss.needs | loss.critic.needs) - source.fills - roles
        if missing:
            raise ValueError(
                f"loss {self.loss.name!r} needs {sorted(missing)}, which source {self.source.name!r} does not fill"
            )
        return Distill(self, Roles.for_distillation(model, self, rng, device), source, loss, total, rng)


class Distill:
    """The method of a distillation."""

    def __init__(self, config: DistillConfig, roles: Roles, source, loss, total: int, rng: Rng):
        self.config, self.roles, self.source, self.loss, self.rng = config, roles, source, loss, rng
        self.optim = Optim(roles.generator.transformer, config.optim, total)
        self.judges = torch.nn.ModuleList([roles.critic.transformer])
        if roles.discriminator is not None:
            self.judges.append(roles.discriminator)
        self.critic_optim = Optim(self.judges, config.critic_optim, total)
        self.ema = Ema(roles.generator.transformer, config.ema)
        self.last_prompts = ()

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Performs one critic update, and before it a generator update where one is due."""
        metrics = self.generator_step(step) if step % self.config.ratio == 0 else {}
        return {**metrics, **self.critic_step(step)}

    def generator_step(self, step: int) -> dict[str, torch.Tensor]:
        """Samples with gradient and moves the generator; the judges pass gradient on but get none."""
        self.judges.requires_grad_(False)
        sample = self.source.next(2 * step, self.roles, self.rng, graded=True)
        self.last_prompts = sample.prompts
        loss, metrics = self.loss(sample, self.roles, self.rng)
        loss.backward()
        metrics["grad_norm"] = self.optim.step(step)
        self.roles.generator.transformer.weights_version += 1
        self.ema.update(step)
        return {f"generator_{name}": value for name, value in metrics.items()}

    def critic_step(self, step: int) -> dict[str, torch.Tensor]:
        """Samples without gradient and moves the critic (and discriminator)."""
        self.judges.requires_grad_(True)
        sample = self.source.next(2 * step + 1, self.roles, self.rng, graded=False)
        self.last_prompts = sample.prompts
        loss, metrics = self.loss.critic(sample, self.roles, self.rng)
        loss.backward()
        metrics["critic_grad_norm"] = self.critic_optim.step(step)
        self.roles.critic.transformer.weights_version += 1
        return {"loss": loss.detach(), **metrics}

    def state_dict(self) -> dict:
        """Returns weights, average and both optimisers."""
        return {
            "generator": self.roles.generator.state_dict(),
            "judges": self.judges.state_dict(),
            "ema": self.ema.state_dict(),
            "optim": self.optim.state_dict(),
            "critic_optim": self.critic_optim.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""
        self.roles.generator.load_state_dict(state["generator"])
        self.judges.load_state_dict(state["judges"])
        for part in ("ema", "optim", "critic_optim"):
            getattr(self, part).load_state_dict(state[part])

    def export(self, folder) -> None:
        """Writes the generator (its average where there is one) in the layout that inference reads."""
        export_transformer(folder, self.roles.generator.transformer, self.ema.weights())

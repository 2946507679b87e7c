"""A loss of your own: the pseudo-Huber distance of the velocity, which weighs large errors less than the square does.

    L = mean (sqrt((v(x_sigma, sigma, c) - (noise - x0))^2 + w^2) - w)

It is this file and one line of `LOSSES`: `"huber": "tests.examples.loss:HuberConfig"`. Recipe: `loss.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.base import Draws, Networks, Sample, draw_noise
from model.config import LossConfig
from wan.context import Full
from wan.generation import GenerationConfig
from wan.schedule import Schedule, shift_sigma


@dataclass
class HuberConfig(LossConfig):
    """width: errors below it count by their square, above it by their size."""

    consumer = "tests.examples.loss:HuberLoss"
    needs = frozenset({"latents", "condition"})

    width: float = 0.1

    @property
    def bidirectional(self) -> bool:
        """Every frame attends to every other, so previews generate all frames at once."""
        return True

    def problems(self) -> Iterator[str]:
        if self.width <= 0:
            yield f"width is {self.width}; write a positive number"


class HuberLoss:
    """The objective of a bidirectional teacher."""

    def __init__(self, config: HuberConfig, generation: GenerationConfig):
        self.width, self.schedule = config.width, Schedule(generation.steps.shift)

    def __call__(self, sample: Sample, roles: Networks, rng: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x0, noise = sample.latents, draw_noise(sample, rng)
        time = 1 - rng.at("sample", sample.step, "sigma").uniform_batch((1,), sample.index)
        sigma = shift_sigma(time, self.schedule.shift).expand(-1, x0.shape[1]).to(x0.device)
        x = self.schedule.diffuse(x0, noise, sigma)
        error = roles.generator(x, sigma, sample.condition, Full()) - (noise - x0)
        loss = ((error.square() + self.width**2).sqrt() - self.width).mean()
        return loss, {"loss": loss.detach(), "sigma": sigma.mean()}

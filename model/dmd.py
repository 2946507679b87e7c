"""Distribution matching distillation: the generator follows teacher score minus critic score.

    g = (x0_critic(x_sigma) - x0_teacher(x_sigma)) / mean |x - x0_teacher(x_sigma)|
    L = 1/2 mean (x - stopgrad(x - g))^2,   so dL/dx = g / numel

over the frames of the sample's mask. A non-finite score makes the loss non-finite and training stops; Self-Forcing
puts 0 in its place and goes on. With the source `noised_data` instead of `rollout` this is
CausVid's objective.
Source: DMD2 (arXiv 2405.14867) equation 8; Self-Forcing, model/dmd.py; CausVid (arXiv 2412.07772).
"""

from __future__ import annotations

import torch

from model.base import Sample
from model.config import DmdConfig
from model.critic import CriticLoss
from model.score import Score, per_sample_scale
from wan.generation import GenerationConfig


class DmdLoss:
    """The generator's objective."""

    def __init__(self, config: DmdConfig, generation: GenerationConfig | None = None):
        self.config, self.score = config, Score(config.score)
        self.critic = CriticLoss(self.score)

    def __call__(self, sample: Sample, roles, rng):
        x = sample.latents
        gradient, sigma = self.direction(sample, roles, rng)
        target = (x.double() - gradient.double()).detach()
        square = (x.double() - target).square()
        mask = sample.frame_mask
        loss = 0.5 * (square if mask is None else square[:, mask]).mean()
        return loss, {"loss": loss.detach(), "dmd_gradient": gradient.abs().mean(), "sigma": sigma.mean()}

    @torch.no_grad()
    def direction(self, sample: Sample, roles, rng) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (g, sigma): the normalised difference of the scores at a drawn noise level."""
        knobs, noised = self.config.score, self.score.noised(sample, rng, "generator")
        fake = self.score.x0(roles.critic, noised, sample.condition, knobs.fake_guidance)
        real = self.score.x0(roles.teacher, noised, sample.condition, knobs.real_guidance)
        return (fake - real) / per_sample_scale(sample.latents - real), noised.sigma

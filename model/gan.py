"""Adversarial matching of noised distributions: D sees real and generated latents at one drawn sigma.

    plain:        L_G = w_g softplus(-D(fake)),          L_D = w_d (softplus(-D(real)) + softplus(D(fake)))
    relativistic: L_G = w_g softplus(D(real) - D(fake)), L_D = w_d softplus(D(fake) - D(real))
    R1, R2:       w ((D(x + s n) - D(x)) / s)^2 on real, on fake latents (approximate gradient penalty)

Differs from Self-Forcing: its trainer halves both penalties, so its weights are twice ours.
Source: Self-Forcing, model/gan.py (which never starts); R1/R2 by finite differences: arXiv 2501.08316.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import softplus

from model.base import Sample, wide
from model.config import GanConfig
from model.score import Noised, Score
from wan.generation import GenerationConfig


class GanLoss:
    """The generator's objective. `sample.real` holds the real latents of the batch."""

    def __init__(self, config: GanConfig, generation: GenerationConfig | None = None):
        self.config, self.score = config, Score(config.score)
        self.critic = DiscriminatorLoss(config, self.score)

    def __call__(self, sample: Sample, roles, rng):
        sigma = self.score.draw_sigma(sample, rng, "generator")
        fake = self.score.noised(sample, rng, "generator fake", sigma)
        real = self.score.noised(replace(sample, latents=sample.real), rng, "generator real", sigma)
        on_fake, on_real = logits(roles, sample, fake, real)
        margin = on_fake - on_real if self.config.relativistic else on_fake
        loss = self.config.generator_weight * softplus(-wide(margin)).mean()
        return loss, {
            "loss": loss.detach(),
            "logit_fake": on_fake.detach().mean(),
            "logit_real": on_real.detach().mean(),
        }


class DiscriminatorLoss:
    """The discriminator's objective, on the same noise for real and fake."""

    def __init__(self, config: GanConfig, score: Score):
        self.config, self.score = config, score

    def __call__(self, sample: Sample, roles, rng):
        config = self.config
        fake = self.score.noised(sample, rng, "critic")
        real_x = self.score.noise_clock.diffuse(sample.real, fake.noise, fake.sigma)
        real = Noised(real_x, fake.noise, fake.sigma)
        on_fake, on_real = (wide(logit) for logit in logits(roles, sample, fake, real))
        if config.relativistic:
            gan = softplus(on_fake - on_real).mean()
        else:
            gan = softplus(-on_real).mean() + softplus(on_fake).mean()
        gan = config.discriminator_weight * gan
        r1 = penalty(
            roles, sample, real, on_real, rng.at("sample", sample.step, "r1"), config.r1_weight, config.r1_sigma
        )
        r2 = penalty(
            roles, sample, fake, on_fake, rng.at("sample", sample.step, "r2"), config.r2_weight, config.r2_sigma
        )
        loss = gan + r1 + r2
        metrics = {
            "critic_loss": loss,
            "gan": gan,
            "r1": r1,
            "r2": r2,
            "logit_real": on_real.mean(),
            "logit_fake": on_fake.mean(),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}


def penalty(roles, sample: Sample, noised: Noised, logit, source, weight: float, width: float) -> torch.Tensor:
    """Returns weight * mean ((D(x + width n) - D(x)) / width)^2, or 0 without drawing if the weight is 0."""
    if not weight:
        return logit.new_zeros(())
    noise = source.normal_batch(noised.x.shape[1:], sample.index).to(noised.x)
    moved = roles.discriminator(roles.critic, noised.x + width * noise, noised.sigma, sample.condition)
    return weight * ((wide(moved) - logit) / width).square().mean()


def logits(roles, sample: Sample, fake: Noised, real: Noised) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits of fake and real from one forward of both, fake first."""
    x, sigma = torch.cat((fake.x, real.x)), torch.cat((fake.sigma, real.sigma))
    return roles.discriminator(roles.critic, x, sigma, sample.condition.repeat(2)).chunk(2)

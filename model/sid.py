"""Score identity distillation: like DMD, but the gradient also flows through both score networks.

    L = mean (r - f) ((r - x) - alpha (r - f)) / stopgrad(mean |x - r|),   r, f = x0 of teacher, critic at x_sigma

A non-finite score makes the loss non-finite, and training stops.
Source: SiD (arXiv 2404.04057) equation 23; Self-Forcing, model/sid.py (which never starts).
"""

from __future__ import annotations

import torch

from model.base import Sample
from model.config import SidConfig
from model.critic import CriticLoss
from model.score import Score, per_sample_scale
from wan.generation import GenerationConfig


class SidLoss:
    """The generator's objective; teacher and critic are frozen but differentiated through."""

    def __init__(self, config: SidConfig, generation: GenerationConfig | None = None):
        self.config, self.score = config, Score(config.score)
        self.critic = CriticLoss(self.score)

    def __call__(self, sample: Sample, roles, rng):
        knobs, x = self.config.score, sample.latents
        noised = self.score.noised(sample, rng, "generator")
        fake = self.score.x0(roles.critic, noised, sample.condition, knobs.fake_guidance).double()
        real = self.score.x0(roles.teacher, noised, sample.condition, knobs.real_guidance).double()
        with torch.no_grad():
            scale = per_sample_scale(x.double() - real)
        product = (real - fake) * ((real - x.double()) - self.config.alpha * (real - fake))
        product = product / scale
        mask = sample.frame_mask
        loss = (product if mask is None else product[:, mask]).mean()
        return loss, {"loss": loss.detach(), "sid_difference": (real - fake).detach().abs().mean()}

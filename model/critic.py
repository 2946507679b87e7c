"""The critic learns the generator's distribution: flow matching on generated latents.

    L = mean |v_critic(x_sigma, sigma, c) - (noise - x)|^2

Source: DMD2 (arXiv 2405.14867) section 4; Self-Forcing, model/dmd.py. Differs from Self-Forcing only
under rounding=table, where its velocity passes through x0 by one table and back by another.
"""

from __future__ import annotations

from model.base import Sample, wide
from model.score import Score


class CriticLoss:
    """The critic's objective on a sample without gradient."""

    def __init__(self, score: Score):
        self.score = score

    def __call__(self, sample: Sample, roles, rng):
        noised = self.score.noised(sample, rng, "critic")
        x0 = self.score.x0(roles.critic, noised, sample.condition)
        velocity = self.score.noise_clock.x0_to_velocity(noised.x, x0, noised.sigma)
        square = wide(velocity - (noised.noise - sample.latents)).square()
        mask = sample.frame_mask
        loss = (square if mask is None else square[:, mask]).mean()
        return loss, {"critic_loss": loss.detach(), "critic_sigma": noised.sigma.mean(), "loss": loss.detach()}

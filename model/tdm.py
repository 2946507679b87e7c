"""Trajectory distribution matching: at every step of the student's path its distribution follows the teacher's.

A step of the student starts with x at sigma s and predicts x0; it ends at m, the next start. In flow coordinates,

    x_m = (1 - m) x0 + m (eta e + sqrt(1 - eta^2) n),   e = (x - (1 - s) x0) / s        the student's own step
    x_t = r x_m + sqrt(t^2 - (r m)^2) n',   r = (1 - t) / (1 - m),   t drawn from [m, high)
    y   = x0 + teacher(x_t) - critic(x_t)                                              x0 of both, no gradient
    L   = mean (sqrt((x0 - y)^2 + h^2) - h),   h = huber sqrt(elements of a sample)
    L_critic = mean w(t) ((critic(x_t) - x0)^2 + regulariser (critic(x_t) - teacher(x_t))^2)

with w = 1 / t^2 (`flow`: the error of the velocity) or ((1 - t)^2 + t^2) / t^2 (`vp`: that of v-prediction). A model of
the VP family is the same in these coordinates: x / (A + S) at sigma = S / (A + S). The step's end is a place of the
student's path and not of its gradient, which is one call of the student (source `trajectory`).
Source: TDM (arXiv 2503.06674); Video-BLADE (arXiv 2508.10774). Differs from BLADE: path and losses share one grid, and
no update is skipped where the critic's loss is large.
"""

from __future__ import annotations

import torch

from model.base import Sample, draw_noise, wide
from model.config import TdmConfig
from model.score import guided_x0, per_sample_scale
from wan.generation import GenerationConfig
from wan.schedule import Schedule, shift_sigma, unshift_sigma, vp_sigmas, vp_time

LARGEST_SCALE = 5.0  # of `normalise`, as published


class TdmLoss:
    """The generator's objective, and the critic's."""

    floor = 0.0  # least radicand of the diffusion

    def __init__(self, config: TdmConfig, generation: GenerationConfig):
        self.config, self.steps, self.clock = config, generation.steps, Schedule()

    def __call__(self, sample: Sample, roles, rng):
        config, x0 = self.config, sample.latents
        with torch.no_grad():
            x_t, t = self.noised(sample, rng, "generator")
            real = guided_x0(self.clock, roles.teacher, x_t, t, sample.condition, config.guidance)
            fake = guided_x0(self.clock, roles.critic, x_t, t, sample.condition)
            target = wide(x0) + wide(real) - wide(fake)
        h = config.huber * x0[0].numel() ** 0.5
        error = ((wide(x0) - target).square() + h**2).sqrt() - h
        if config.normalise:
            error = error / per_sample_scale(wide(x0.detach() - real)).clamp(max=LARGEST_SCALE)
        loss = error.mean()
        return loss, {"loss": loss.detach(), "tdm_direction": (real - fake).abs().mean(), "sigma": t.mean()}

    def critic(self, sample: Sample, roles, rng):
        """The critic's objective on a sample without gradient."""
        config, x0 = self.config, sample.latents.detach()
        x_t, t = self.noised(sample, rng, "critic")
        fake = wide(guided_x0(self.clock, roles.critic, x_t, t, sample.condition))
        square = (fake - wide(x0)).square()
        if config.regulariser:
            with torch.no_grad():
                real = wide(guided_x0(self.clock, roles.teacher, x_t, t, sample.condition))
            square = square + config.regulariser * (fake - real).square()
        weight = (1 if config.critic_weight == "flow" else (1 - t) ** 2 + t**2) / t**2
        loss = (weight[:, None, None, None, None] * square).mean()
        return loss, {"critic_loss": loss.detach(), "critic_sigma": t.mean(), "loss": loss.detach()}

    @torch.no_grad()
    def noised(self, sample: Sample, rng, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (x_t, t): the end of the sample's step, diffused on to a drawn t [B]."""
        x0, step, clock = sample.latents.detach(), sample.interval, self.clock
        noise = clock.noise_of(step.x, x0, step.start, self.steps.eta, lambda: draw_noise(sample, rng, f"{name} mix"))
        x_m = clock.diffuse(x0, noise, step.end)
        t = self.draw_sigma(sample, rng, name)
        return clock.diffuse_on(x_m, step.end, t, draw_noise(sample, rng, f"{name} noise"), self.floor), t

    def draw_sigma(self, sample: Sample, rng, name: str) -> torch.Tensor:
        """Returns t [B], drawn for each sample from its step's end (or `low`) to `high`, uniformly in time."""
        config, end = self.config, sample.interval.end.clamp(min=self.config.low)
        drawn = rng.at("sample", sample.step, f"{name} time").uniform_batch((), sample.index).to(end)
        if self.steps.clock == "vp":  # integer times
            table, least = vp_sigmas(self.steps.shift).to(end), vp_time(end, self.steps.shift).ceil()
            return table[(least + drawn * (config.high * len(table) - least)).long()]
        least, most = unshift_sigma(end, config.shift), unshift_sigma(config.high, config.shift)
        return shift_sigma(least + drawn * (most - least), config.shift)

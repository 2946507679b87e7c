"""The scores of distribution matching: draw a noise level, noise the generated x, ask teacher and critic for x0.

Times are drawn on the 1000-grid, shifted and clamped. `noise` is the clock that mixes, `score` the
one by which the networks' velocities become x0; the ancestors have different tables for the two
(shift 5 and 8, snapped), ours is one continuous clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model.base import Sample
from model.config import ScoreConfig
from wan.condition import Condition
from wan.context import Full
from wan.schedule import NUM_TRAIN_TIMESTEPS, Schedule, shift_sigma


@dataclass
class Noised:
    """x at a drawn sigma: x_sigma = diffuse(x, noise, sigma), all [B, F, C, h, w]; sigma [B, F]."""

    x: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor


@dataclass
class Score:
    """The clocks and draws that generator and critic losses share."""

    config: ScoreConfig
    noise_clock: Schedule = field(init=False)
    score_clock: Schedule = field(init=False)

    def __post_init__(self):
        self.noise_clock = Schedule(self.config.noise_shift, self.config.rounding)
        self.score_clock = Schedule(self.config.score_shift, self.config.rounding)

    def draw_sigma(self, sample: Sample, rng, name: str) -> torch.Tensor:
        """Returns one sigma per sample, [B, F] with equal columns: drawn, shifted, clamped."""
        config = self.config
        low, high = config.first, config.last
        if config.from_exit and sample.exit_range is not None:
            low = sample.exit_range[1]
        if config.to_exit and sample.exit_range is not None:
            high = sample.exit_range[0]
        grid = rng.at("sample", sample.step, f"{name} time").integers_batch(low, high, sample.index, shape=(1,))
        sigma = shift_sigma(grid / NUM_TRAIN_TIMESTEPS, config.shift)
        sigma = sigma.clamp(config.low, config.high).to(sample.latents.device)
        return sigma.expand(sample.latents.shape[:2])

    def noised(self, sample: Sample, rng, name: str, sigma: torch.Tensor | None = None) -> Noised:
        """Returns the sample's latents at a drawn (or given) sigma, under the draws of `name`."""
        sigma = self.draw_sigma(sample, rng, name) if sigma is None else sigma
        shape = sample.latents.shape[1:]
        noise = rng.at("sample", sample.step, f"{name} noise").normal_batch(shape, sample.index).to(sample.latents)
        return Noised(self.noise_clock.diffuse(sample.latents, noise, sigma), noise, sigma)

    def x0(self, network, noised: Noised, condition: Condition, w: float = 1.0) -> torch.Tensor:
        """Returns the network's x0 at the noised latents, guided by w."""
        return guided_x0(self.score_clock, network, noised.x, noised.sigma, condition, w)


def guided_x0(
    clock: Schedule, network, x: torch.Tensor, sigma: torch.Tensor, condition: Condition, w: float = 1.0
) -> torch.Tensor:
    """Returns the x0 of a network that sees the whole clip x at sigma, guided by w.

    sigma: [B], or [B, F] with equal columns: the network is told one for a sample, as an order over the clip needs it.
    """
    level = sigma[:, :1] if sigma.ndim == 2 else sigma
    conditional = clock.velocity_to_x0(x, network(x, level, condition, Full()), sigma)
    if w == 1:
        return conditional
    null = clock.velocity_to_x0(x, network(x, level, condition.null(), Full()), sigma)
    return null + w * (conditional - null)


def per_sample_scale(difference: torch.Tensor) -> torch.Tensor:
    """Returns mean |difference| over frames, channels and cells, [B, 1, 1, 1, 1]: the ancestors' normaliser."""
    return difference.abs().mean((1, 2, 3, 4), keepdim=True)

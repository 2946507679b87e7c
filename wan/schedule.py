"""Flow matching on sigma in [0, 1] (1 = pure noise): x_sigma = (1 - sigma) x0 + sigma noise.

The network predicts the velocity = noise - x0. Sigma is the only clock; `timestep = 1000 sigma`
exists at the transformer's embedding and nowhere else.

`rounding` reproduces published systems, which look sigma up in tables: `integer` truncates the
timestep, `table` takes the nearest of the 1000 entries of a shifted table (whose last sigma is
not 0). Ours is `none`.
Source: Self-Forcing, utils/scheduler.py (tables); arXiv 2210.02747 (flow matching).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from wan.config import clock_problems, raise_first, step_problems

NUM_TRAIN_TIMESTEPS = 1000
VP_BETAS = (0.00085, 0.012)  # of the variance-preserving schedule, first and last


def shift_sigma(sigma, shift: float):
    """Returns s sigma / (1 + (s - 1) sigma): more time at high noise for shift s > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma, shift: float):
    """Returns what `shift_sigma` makes this of."""
    return sigma / (shift - (shift - 1) * sigma)


@functools.lru_cache(maxsize=32)
def sigma_table(shift: float) -> torch.Tensor:
    """Returns the 1000 shifted training sigmas in fp32, noisiest first."""
    grid = torch.linspace(1.0, 0.0, NUM_TRAIN_TIMESTEPS + 1)[:-1]
    return shift_sigma(grid, shift)


@functools.lru_cache(maxsize=32)
def weight_table(shift: float) -> torch.Tensor:
    """Returns the training weight of each entry of `sigma_table`: a bell around sigma 0.5 with mean 1."""
    times = sigma_table(shift) * NUM_TRAIN_TIMESTEPS
    bell = torch.exp(-2 * ((times - NUM_TRAIN_TIMESTEPS / 2) / NUM_TRAIN_TIMESTEPS) ** 2)
    bell = bell - bell.min()
    return bell * (NUM_TRAIN_TIMESTEPS / bell.sum())


def nearest_index(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Returns the index of the nearest entry of `sigma_table` on the 1000-scale, shape of `sigma`."""
    times = (sigma_table(shift) * NUM_TRAIN_TIMESTEPS).to(sigma.device, sigma.dtype)
    given = sigma * NUM_TRAIN_TIMESTEPS
    return (times - given.unsqueeze(-1)).abs().argmin(-1)


@dataclass(frozen=True)
class Schedule:
    """The clock of one role: `shift` of its table and how it looks sigma up (`rounding`)."""

    shift: float = 5.0
    rounding: str = "none"  # none | integer | table

    def __post_init__(self):
        raise_first(clock_problems(self.shift, self.rounding))

    def rounded(self, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the sigma that this role computes with when told `sigma` (fp32 or wider)."""
        sigma = sigma if sigma.dtype == torch.float64 else sigma.float()
        if self.rounding == "table":
            table = sigma_table(self.shift).to(sigma.device, sigma.dtype)
            return table[nearest_index(sigma, self.shift)]
        if self.rounding == "integer":
            return (sigma * NUM_TRAIN_TIMESTEPS).long().to(sigma.dtype) / NUM_TRAIN_TIMESTEPS
        return sigma

    def diffuse(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Mixes x0 with noise at `sigma` (broadcast over trailing axes); fp32 inside, dtype of `noise`."""
        s = _expand(self.rounded(sigma), x0)
        wide = _wide(x0)
        return ((1 - s) * x0.to(wide) + s * noise.to(wide)).to(noise.dtype)

    def velocity_to_x0(self, x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Returns x0 = x - sigma velocity, computed in fp32 (or wider), in the velocity's dtype."""
        wide = _wide(x)
        s = _expand(self.rounded(sigma), x)
        return (x.to(wide) - s * velocity.to(wide)).to(velocity.dtype)

    def x0_to_velocity(self, x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Returns velocity = (x - x0) / sigma; sigma must not be 0."""
        wide = _wide(x)
        s = _expand(self.rounded(sigma), x)
        return ((x.to(wide) - x0.to(wide)) / s).to(x0.dtype)

    def noise_of(self, x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor, eta: float, fresh) -> torch.Tensor:
        """Returns noise of unit variance: eta of the noise in x at `sigma`, the rest of `fresh()`.

        eta 0 = all fresh, 1 = none, and nothing is drawn. sigma must not be 0; in the dtype of x0.
        """
        if not eta:
            return fresh()
        wide = _wide(x)
        s = _expand(sigma, x).to(wide)
        noise = (x.to(wide) - (1 - s) * x0.to(wide)) / s
        if eta < 1:
            noise = eta * noise + (1 - eta**2) ** 0.5 * fresh().to(wide)
        return noise.to(x0.dtype)

    def diffuse_on(self, x: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor, noise, floor=0.0) -> torch.Tensor:
        """Returns x, which is at `sigma`, at the higher noise level `after`; fp32 inside, dtype of x.

        With r = (1 - after) / (1 - sigma): r x + sqrt(after^2 - (r sigma)^2) noise. floor: least radicand.
        """
        wide = _wide(x)
        s, t = _expand(sigma, x).to(wide), _expand(after, x).to(wide)
        r = (1 - t) / (1 - s)
        return (r * x.to(wide) + (t**2 - (r * s) ** 2).clamp(min=floor).sqrt() * noise.to(wide)).to(x.dtype)

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the training weight of the nearest table entry, shape of `sigma`."""
        return weight_table(self.shift).to(sigma.device)[nearest_index(sigma, self.shift)]


def step_sigmas(steps, shift: float, warp: bool = True, clock: str = "flow") -> tuple[float, ...]:
    """Turns a published step list on the 1000-scale ([1000, 750, 500, 250]) into sigmas.

    `warp` reads the steps as indices into the shifted table, as the distilled models were trained. clock `vp`: step s
    is time s - 1 of a variance-preserving schedule, whose shift is that of its signal to noise.
    Errors: ValueError for an empty list, values outside (0, 1000], or steps that do not descend.
    """
    steps = list(steps)
    top = NUM_TRAIN_TIMESTEPS
    raise_first(step_problems(steps))
    if clock == "vp":
        return tuple(float(vp_sigmas(shift)[max(0, round(s) - 1)]) for s in steps)
    if warp:
        table = sigma_table(shift)
        return tuple(float(table[top - int(s)]) for s in steps)
    return tuple(s / top for s in steps)


@functools.lru_cache(maxsize=8)
def vp_sigmas(snr_shift: float) -> torch.Tensor:
    """Returns the sigma of each of the times 0 to 999 of a variance-preserving schedule, float64, ascending to 1.

    With A^2 the share of signal in the variance, sigma = S / (A + S): the same latents, divided by A + S, lie on the
    straight line. Scaled-linear betas, A^2 / (k + (1 - k) A^2) for the shift k, no signal left at time 999.
    Source: CogVideoX (arXiv 2408.06072), as diffusers computes it.
    """
    first, last = VP_BETAS
    betas = torch.linspace(first**0.5, last**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    share = (1 - betas).cumprod(0)
    signal = (share / (snr_shift + (1 - snr_shift) * share)).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    spread = (1 - signal.square()).sqrt()
    return spread / (signal + spread)


def vp_time(sigma: torch.Tensor, snr_shift: float) -> torch.Tensor:
    """Returns the time in [0, 999] of each sigma, float64: exact at the table's entries, between them linear in the
    logarithm of signal to noise, below and above them the first and the last."""
    table = vp_sigmas(snr_shift).to(sigma.device)
    sigma = sigma.double().clamp(table[0], 1.0)
    upper = torch.searchsorted(table, sigma.contiguous()).clamp(1, NUM_TRAIN_TIMESTEPS - 1)
    low, high, given = (((1 - s) / s).log() for s in (table[upper - 1], table[upper], sigma))
    part = (low - given) / (low - high)  # the last entry has no signal at all: what lies before it is its neighbour
    exact = torch.where(sigma == table[upper], 1.0, torch.where(high.isinf(), 0.0, part))
    return upper - 1 + exact


def vp_trailing(num_steps: int) -> tuple[int, ...]:
    """Returns the times of a generation of so many steps, noisiest first, as the published model takes them."""
    return tuple(round(NUM_TRAIN_TIMESTEPS - i * NUM_TRAIN_TIMESTEPS / num_steps) - 1 for i in range(num_steps))


def _wide(x: torch.Tensor) -> torch.dtype:
    """Half precision is widened to fp32; fp64 stays."""
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _expand(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Adds trailing axes so that sigma [B] or [B, F] broadcasts over `like` [B, F, C, H, W]."""
    sigma = sigma.to(like.device)
    return sigma.reshape(*sigma.shape, *(1,) * (like.ndim - sigma.ndim))

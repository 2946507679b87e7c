"""Networks and samples so small that a test writes an objective out a second time by hand. All in float64."""

from __future__ import annotations

import torch
from torch import nn

from model.base import Sample
from tests import tiny
from utils.rng import Recording
from wan.condition import Condition

BOUND = 1e-9  # between two ways to write one formula in float64
DIFFERENT = 1e-4  # a wrong formula is at least this far off
CHANNELS, HEIGHT, WIDTH = 2, 2, 3
SIGMAS = (0.625, 0.3)  # of the two rows of a batch: `grid(625, 300)` under a shift of 1
GRID = (625, 300)
LEARNED = ("slope", "push", "pull")


class Affine(nn.Module):
    """velocity = slope x + push mean(text) + pull clean: three learned numbers. `calls` holds what it was given."""

    def __init__(self, slope: float, push: float, pull: float = 0.0):
        super().__init__()
        for name, value in zip(LEARNED, (slope, push, pull), strict=True):
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        self.calls = []

    def forward(self, x, sigma, condition, context, clean=None):
        self.calls.append((x.detach(), sigma, condition, context, clean))
        velocity = self.slope * x + self.push * text_mean(condition.text)
        return velocity if clean is None else velocity + self.pull * clean.x


def text_mean(text: torch.Tensor) -> torch.Tensor:
    """Returns each row's mean of the text as [B, 1, 1, 1, 1]."""
    return text.mean((1, 2))[:, None, None, None, None]


def rows(sigma) -> torch.Tensor:
    """Returns noise levels [B] or [B, F] in the clock's fp32, ready to multiply latents."""
    sigma = torch.as_tensor(sigma, dtype=torch.float32)
    return sigma.reshape(*sigma.shape, *[1] * (5 - sigma.ndim))


def normal(*key, batch: int = 2, frames: int = 4) -> torch.Tensor:
    """Returns normal latents [B, F, C, h, w] that depend on the key alone."""
    return tiny.draw(*key, shape=(batch, frames, CHANNELS, HEIGHT, WIDTH), dtype=torch.float64)


def sample(batch: int = 2, frames: int = 4, chunk: int = 2, **fields) -> Sample:
    """Returns a batch of latents with gradient, in chunks of `chunk` frames."""
    text, null = (tiny.draw(name, shape=(batch, 3, 5), dtype=torch.float64) for name in ("text", "null"))
    latents = normal("latents", batch=batch, frames=frames).requires_grad_(True)
    spans = tiny.spans(*[chunk] * (frames // chunk))
    return Sample(0, latents, Condition(text, null), range(batch), spans, **fields)


def draws(grid=GRID, noises: int = 1) -> tuple[Recording, list[torch.Tensor]]:
    """Returns the draws of a score loss in call order: times on the 1000-grid, then so many noises; and the noises."""
    drawn = [normal("noise", k, batch=len(grid)) for k in range(noises)]
    return Recording([torch.tensor(grid)[:, None], *drawn]), drawn


def gradients(*modules: nn.Module) -> list:
    """Returns the gradients of the modules' weights in order, None where there is none."""
    return [weight.grad for module in modules for weight in module.parameters()]

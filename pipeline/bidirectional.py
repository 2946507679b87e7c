"""All frames at once, every frame sees every other: the undistilled Wan models, two experts, i2v."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.bundle import ModelBundle
from pipeline.config import BidirectionalConfig
from pipeline.rollout import Chunk, guided
from pipeline.sampler import sample
from wan.condition import Condition
from wan.context import Full
from wan.geometry import Span


def bidirectional(config: BidirectionalConfig, generation, bundle, sampler, geometry, seed: int = 0) -> Bidirectional:
    """Returns the pipeline of a `BidirectionalConfig`, which needs neither chunks, geometry nor draws."""
    return Bidirectional(bundle, sampler)


class Bidirectional:
    """A bidirectional pipeline: `generate` yields one chunk, the clip."""

    def __init__(self, bundle: ModelBundle, sampler):
        self.bundle, self.sampler = bundle, sampler

    def spans(self, total: int, given: int = 0) -> list[Span]:
        """Returns the whole clip as one span."""
        return [Span(0, total)]

    def round_up(self, total: int, given: int = 0) -> int:
        """Any length will do."""
        return total

    def start(self, batch: int, total: int, given: int = 0) -> None:
        """Returns no state: a clip has one chunk."""

    @torch.no_grad()
    def generate(self, condition: Condition, noise, batch: int, total: int, given=None, state=None) -> Iterator[Chunk]:
        """Yields the clip. given: clean first frames that stay as they are, at sigma 0 (TI2V)."""
        span, device = Span(0, total), self.bundle.device
        predict = guided(self.bundle.denoiser, condition, [Full(), Full()], self.sampler.guidance)
        start = noise(span, 0).to(device)
        if given is not None:
            predict = hold(predict, given.to(start))
        latents = sample(self.sampler, start, predict, lambda k: noise(span, k).to(device))
        if given is not None:
            latents = torch.cat((given.to(latents), latents[:, given.shape[1] :]), 1)
        yield Chunk(span, latents)


def hold(predict, given_BFCHW: torch.Tensor):
    """Returns a predict that shows the given first frames clean, each frame with its own sigma."""
    count = given_BFCHW.shape[1]

    def held(x_BFCHW: torch.Tensor, sigma: float) -> torch.Tensor:
        x = torch.cat((given_BFCHW, x_BFCHW[:, count:]), 1)
        rows = torch.full(x.shape[:2], sigma, dtype=torch.float64, device=x.device)
        rows[:, :count] = 0
        return predict(x, rows)

    return held

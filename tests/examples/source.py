"""A source of your own: clips that stand still, made of the first frame of recorded ones.

It is this file and one line of `SOURCES`: `"stills": "tests.examples.source:StillsConfig"`.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.base import Sample
from trainer.sources.config import LatentsConfig
from trainer.sources.latents import Latents


@dataclass
class StillsConfig(LatentsConfig):
    """The knobs of recorded clips; it fills what they fill."""

    consumer = "tests.examples.source:Stills"


class Stills(Latents):
    """Each sample is the first latent frame of a clip, over and over."""

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Returns the samples of one step; which clips they are is the base's draw."""
        sample = super().next(step, roles, rng, with_grad, index)
        sample.latents = sample.latents[:, :1].expand_as(sample.latents).contiguous()
        return sample

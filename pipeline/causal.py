"""Chunk by chunk with a cache: few-step or guided multi-step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.bundle import ModelBundle
from pipeline.config import CausalConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout, draw_distance
from pipeline.state import RolloutState
from pipeline.track import Fixed, Track
from utils.rng import Rng
from wan.condition import Condition
from wan.generation import GenerationConfig
from wan.geometry import Geometry, Span


def causal(config: CausalConfig, generation, bundle: ModelBundle, sampler, geometry, seed: int = 0) -> Causal:
    """Returns the pipeline of a `CausalConfig`, whose knobs are those of `generation`."""
    return Causal(generation, bundle, sampler, geometry, seed)


class Causal:
    """A causal pipeline: `generate` yields the chunks of a batch of videos."""

    def __init__(self, generation: GenerationConfig, bundle: ModelBundle, sampler, geometry: Geometry, seed: int = 0):
        """seed: of what is drawn apart from the noise: the distances of a portrait."""
        joins = bundle.spec.transformer.in_dim != bundle.spec.transformer.out_dim
        if joins or not bundle.spec.causal_ok:
            why = "joins image channels" if joins else "has two experts"
            raise ValueError(f"{bundle.spec.name} {why} and runs bidirectionally; write pipeline.name=bidirectional")
        self.generation, self.bundle = generation, bundle
        self.rollout = Rollout(
            bundle.denoiser,
            sampler,
            geometry,
            generation.cache,
            generation.context,
            device=bundle.device,
            dtype=bundle.dtype,
            portrait=generation.portrait,
            distance=draw_distance(generation.portrait, Rng(seed)),
            storage=bundle.offload.caches,
        )
        self.executor = PlainExecutor(self.rollout)

    def spans(self, total: int, given: int = 0) -> list[Span]:
        """Returns the chunks to generate of a video of `total` frames whose first `given` are given."""
        return self.generation.spans(total, given)

    def round_up(self, total: int, given: int = 0) -> int:
        """Returns the least length of at least `total` frames that fills whole chunks."""
        return self.generation.round_up(total, given)

    def start(self, batch: int, total: int, given: int = 0) -> RolloutState:
        """Returns videos of `total` frames before their first one, `given` frames of which will be given."""
        lengths = [len(span) for span in [*self.generation.given_spans(given), *self.spans(total, given)]]
        return self.rollout.start(batch, max(lengths), total)

    @torch.no_grad()
    def generate(
        self, condition: Condition | Track, noise, batch: int, total: int, given=None, state: RolloutState | None = None
    ) -> Iterator[Chunk]:
        """Yields the given frames (latents [B, F, C, h, w] or None) and the generated chunks.

        condition: that of the whole video, or a track of several. state: from `start`, or that of a video that was
        interrupted, which goes on where it was.
        """
        count = 0 if given is None else given.shape[1]
        spans = self.generation.given_spans(count)
        first = [
            Chunk(s, given[:, s.start : s.stop].to(self.bundle.device, self.bundle.dtype), given=True) for s in spans
        ]
        track = condition if isinstance(condition, Track) else Fixed(condition)
        state = self.start(batch, total, count) if state is None else state
        yield from self.executor.run(state, track, self.spans(total, count), noise, first)

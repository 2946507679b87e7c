"""Chunk by chunk with a cache: few-step or guided multi-step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.bundle import ModelBundle
from pipeline.config import CausalConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.state import RolloutState
from pipeline.track import Fixed, Track
from wan.condition import Condition
from wan.geometry import Geometry, Span, chunks


class Causal:
    """A causal pipeline: `generate` yields the chunks of a batch of videos."""

    def __init__(self, config: CausalConfig, bundle: ModelBundle, sampler, geometry: Geometry):
        joins = bundle.spec.transformer.in_dim != bundle.spec.transformer.out_dim
        if joins or not bundle.spec.causal_ok:
            why = "joins image channels" if joins else "has two experts"
            raise ValueError(f"{bundle.spec.name} {why} and runs bidirectionally; write pipeline.name=bidirectional")
        self.config, self.bundle = config, bundle
        self.rollout = Rollout(
            bundle.denoiser, sampler, geometry, config.cache, config.context, device=bundle.device, dtype=bundle.dtype
        )
        self.executor = PlainExecutor(self.rollout)

    def spans(self, total: int, given: int = 0) -> list[Span]:
        """Returns the chunks to generate of a video of `total` frames whose first `given` are there."""
        if given:
            if total <= given:
                raise ValueError(f"{given} latent frames are given and the video has {total}; ask for a longer one")
            return chunks(total, self.config.chunk, given)[1:]
        return chunks(total, self.config.chunk, self.config.first_chunk or None)

    def round_up(self, total: int, given: int = 0) -> int:
        """Returns the least length of at least `total` frames that fills whole chunks."""
        head = given or self.config.first_chunk
        return head + -(-max(1, total - head) // self.config.chunk) * self.config.chunk

    def round_down(self, frames: int) -> int:
        """Returns how many of so many first frames fill whole chunks."""
        head = self.config.first_chunk or self.config.chunk
        return 0 if frames < head else head + (frames - head) // self.config.chunk * self.config.chunk

    def given_spans(self, given: int) -> list[Span]:
        """Returns the chunks of so many given first frames."""
        head = self.config.first_chunk or self.config.chunk
        borders = [0, *range(head, given, self.config.chunk), given] if given else []
        return [Span(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True)]

    def start(self, batch: int, total: int, given: int = 0) -> RolloutState:
        """Returns videos of `total` frames before their first one, `given` frames of which will be given."""
        lengths = [len(span) for span in [*self.given_spans(given), *self.spans(total, given)]]
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
        spans = self.given_spans(count)
        first = [
            Chunk(s, given[:, s.start : s.stop].to(self.bundle.device, self.bundle.dtype), given=True) for s in spans
        ]
        track = condition if isinstance(condition, Track) else Fixed(condition)
        state = self.start(batch, total, count) if state is None else state
        yield from self.executor.run(state, track, self.spans(total, count), noise, first)

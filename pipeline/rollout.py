"""The one loop over chunks: denoise, then the context pass that enters the chunk into the caches.

Training, batch inference and the live server run this. It is a generator; a batch is a loop around
it. One cache per guidance branch; each has exactly one committing pass per chunk, without grad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pipeline.options import ContextConfig
from pipeline.sampler import sample
from pipeline.track import Track
from wan.cache import CacheShape, Chunks, Ring
from wan.context import Cached
from wan.denoiser import sigma_rows
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig, Ledger
from wan.schedule import Schedule


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) of the film: latents [B, F, C, h, w]. `given`: they were not generated."""

    span: Span
    latents: torch.Tensor
    given: bool = False


@dataclass
class Rollout:
    """A causal film: `rollout(track, spans, noise)` yields its chunks.

    noise(span, k) -> [B, F, C, h, w] normal noise: k = 0 starts the chunk, k >= 1 re-noises before
    step k, k = -1 is the context pass's. training=True keeps keys in `Chunks` (gradients, no ring).
    """

    denoiser: Callable
    sampler: object
    geometry: Geometry
    cache: CacheConfig = field(default_factory=CacheConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: bool = False
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None  # of the caches; by default that of the weights

    def __call__(
        self, track: Track, spans: Sequence[Span], noise, batch: int, given: Sequence[Chunk] = (), max_frames=None
    ) -> Iterator[Chunk]:
        """Yields the given chunks, then one chunk per span.

        given: clean chunks before the first span (a start image, the end of a video).
        max_frames: the film's length where no window bounds the cache; by default that of `spans`.
        """
        lengths = [len(s) for s in spans] + [len(c.span) for c in given]
        total = max_frames or max(s.stop for s in [*spans, *(c.span for c in given)])
        self.branches = self._open(track, batch, max(lengths), total)
        for chunk in given:
            self.commit(track, chunk.span, chunk.latents, noise)
            yield chunk
        for span in spans:
            latents = self.denoise(track, span, noise)
            self.commit(track, span, latents, noise)
            yield Chunk(span, latents)

    def denoise(self, track: Track, span: Span, noise) -> torch.Tensor:
        """Returns x0 of the next chunk; the caches stay as they are."""
        predict = self.predictor(track, span)
        start = noise(span, 0).to(self.device)
        return sample(self.sampler.at(span), start, predict, lambda k: noise(span, k).to(self.device))

    def predictor(self, track: Track, span: Span):
        """Returns predict(x, sigma) -> velocity over the span, guided if the sampler asks for it."""
        condition, w = track.at(span), self.sampler.guidance
        contexts = [Cached(cache, span) for cache in self.branches]
        return guided(self.denoiser, condition, contexts, w)

    def commit(self, track: Track, span: Span, latents: torch.Tensor, noise) -> None:
        """Runs the context pass of every branch on the finished chunk."""
        knobs, condition = self.context, track.at(span)
        with torch.no_grad():
            x = latents.detach()
            if knobs.renoise:
                sigma = sigma_rows(knobs.sigma, x).to(torch.promote_types(x.dtype, torch.float32))
                x = Schedule(knobs.shift, knobs.snap).diffuse(x, noise(span, -1).to(x), sigma)
            for number, cache in enumerate(self.branches):
                context = Cached(cache, span)
                self.denoiser(x, knobs.sigma, condition.null() if number else condition, context)
                context.commit()

    def _open(self, track: Track, batch: int, chunk_frames: int, max_frames: int) -> list:
        """Returns one empty cache per guidance branch."""
        spec, heads = self.denoiser.spec, self.denoiser.cache_heads
        shape = CacheShape(spec.num_layers, batch, heads, spec.head_dim, self.geometry.frame_tokens)
        count = 1 if self.sampler.guidance == 1 else 2
        ledgers = [Ledger(self.cache, chunk_frames, max_frames) for _ in range(count)]
        if self.training:
            return [Chunks(ledger, shape) for ledger in ledgers]
        dtype = self.dtype or next(self.denoiser.parameters()).dtype
        return [Ring(ledger, shape, self.device, dtype) for ledger in ledgers]


def guided(denoiser, condition, contexts: Sequence, w):
    """Returns predict(x, sigma) = uncond + w (cond - uncond), or the conditional one alone if w is 1.

    contexts: that of the conditional branch, then that of the null branch.
    w: a number, or (low-noise, high-noise) for a denoiser of two experts.
    """
    if w == 1:
        return lambda x, sigma: denoiser(x, sigma, condition, contexts[0])
    null = condition.null()

    def predict(x: torch.Tensor, sigma: float) -> torch.Tensor:
        conditional = denoiser(x, sigma, condition, contexts[0])
        unconditional = denoiser(x, sigma, null, contexts[1])
        weight = w[denoiser.expert(sigma)] if isinstance(w, tuple) else w
        return unconditional + weight * (conditional - unconditional)

    return predict

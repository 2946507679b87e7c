"""The one loop over chunks: denoise, then the context pass that enters the chunk into the caches.

Training, batch inference and the live server run this. It is a generator; a batch is a loop around
it. One cache per guidance branch; each has exactly one committing pass per chunk, without grad. Where
the condition changes, the caches are made anew under it (`cache.recache`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.config import ContextConfig
from pipeline.sampler import iterate_steps
from pipeline.track import Track
from wan.cache import CacheShape, Chunks, Ring
from wan.condition import Condition, select_frames
from wan.context import Cached, Recached
from wan.denoiser import sigma_rows
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig, Ledger
from wan.schedule import Schedule

RECACHE_INCOMPLETE = object()  # the key of no condition: a recache has begun and not ended
MAX_PREEMPTIONS = 4  # of a chunk for what is urgent; then it is finished first, so that a flood of switches ends


def no_preemption() -> bool:
    """Returns False: nothing is urgent."""
    return False


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) of the video: latents [B, F, C, h, w]. `given`: they were not generated.

    recache_seconds: None, or how long entering a new condition before this chunk took.
    pixels: [B, P, 3, H, W] in [-1, 1], where a session has decoded them.
    """

    span: Span
    latents: torch.Tensor
    given: bool = False
    recache_seconds: float | None = None
    pixels: torch.Tensor | None = None


@dataclass
class Rollout:
    """A causal video: `rollout(track, spans, noise)` yields its chunks.

    noise(span, k) -> [B, F, C, h, w] normal noise: k = 0 starts the chunk, k >= 1 re-noises before
    step k, k = -1 is the context pass's. training=True keeps keys in `Chunks` (gradients, no ring).
    `begin` and then `make` for each span are the same, one chunk at a time.
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
        max_frames: the video's length where no window bounds the cache; by default that of `spans`.
        """
        lengths = [len(s) for s in spans] + [len(c.span) for c in given]
        total = max_frames or max(s.stop for s in [*spans, *(c.span for c in given)])
        self.start(batch, max(lengths), total)
        for chunk in given:
            yield self.commit_given(track.at(chunk.span), chunk, noise)
        for span in spans:
            yield self.generate_chunk(track, span, noise)

    def start(self, batch: int, chunk_frames: int, max_frames: int | None) -> None:
        """Starts a video: empty caches. chunk_frames: its largest chunk; max_frames: its length, if known."""
        self.sizes = {"batch": batch, "chunk_frames": chunk_frames, "max_frames": max_frames}
        self.branches = self._open(batch, chunk_frames, max_frames)
        self.key, self.latest = None, []

    def generate_chunk(self, track: Track, span: Span, noise) -> Chunk:
        """Returns the next chunk, committed. Where the track is urgent it is begun anew, from the same noise."""
        seconds = None
        for begun in itertools.count():
            condition = track.at(span)
            seconds = self.set_condition(condition) or seconds
            latents = self.denoise(
                condition, span, noise, track.preempt_requested if begun < MAX_PREEMPTIONS else no_preemption
            )
            if latents is not None:
                break
        self.commit(condition, span, latents, noise)
        return Chunk(span, latents, recache_seconds=seconds)

    def commit_given(self, condition: Condition, chunk: Chunk, noise) -> Chunk:
        """Commits a chunk that was given instead of made; returns it, with the seconds of a recache before it."""
        seconds = self.set_condition(condition)
        self.commit(condition, chunk.span, chunk.latents, noise)
        return replace(chunk, recache_seconds=seconds)

    def set_condition(self, condition: Condition) -> float | None:
        """Makes `condition` the one in force; recaches if another was. Returns the seconds that took, or None.

        Where that fails, the caches hold some of both; the next try makes them anew, whatever its condition.
        """
        if self.key == condition.key or not self.latest:  # the same, or nothing to recache
            self.key = condition.key
            return None
        start, self.key = self._now(), RECACHE_INCOMPLETE
        self.recache(condition)
        self.key = condition.key
        return self._now() - start

    def denoise(self, condition: Condition, span: Span, noise, preempt_requested=no_preemption) -> torch.Tensor | None:
        """Returns x0 of the next chunk, or None if it was `urgent()` between two steps; the caches stay as they are."""
        sampler, predict = self.sampler.at(span), self.predictor(condition, span)
        start = noise(span, 0).to(self.device)
        steps = iterate_steps(sampler, start, predict, lambda k: noise(span, k).to(self.device))
        latents = None
        for done, x in enumerate(steps, 1):
            if done < sampler.num_steps and preempt_requested():
                return None
            latents = x
        return latents

    def predictor(self, condition: Condition, span: Span):
        """Returns predict(x, sigma) -> velocity over the span, guided if the sampler asks for it."""
        contexts = [Cached(cache, span) for cache in self.branches]
        return guided(self.denoiser, condition.cut(span), contexts, self.sampler.guidance)

    @torch.no_grad()
    def commit(self, condition: Condition, span: Span, latents: torch.Tensor, noise) -> None:
        """Runs the context pass of every branch on the finished chunk."""
        knobs, x = self.context, latents.detach()
        if knobs.renoise:
            sigma = sigma_rows(knobs.sigma, x).to(torch.promote_types(x.dtype, torch.float32))
            x = Schedule(knobs.shift, knobs.rounding).diffuse(x, noise(span, -1).to(x), sigma)
        self.context_pass(x, condition.cut(span), [Cached(cache, span) for cache in self.branches])
        self._remember(span, latents.detach())

    @torch.no_grad()
    def recache(self, condition: Condition) -> None:
        """Lets the caches hold the latest frames as `condition` makes them, from their clean latents, not re-noised.

        Needs of the caches only a sink that is kept, which it does not write: so it can be begun again.
        """
        kind = self.cache.recache
        if kind == "reset":
            for cache in self.branches:
                cache.reset()
        elif kind == "bidirectional":
            contexts = [Recached(cache) for cache in self.branches]
            frames = contexts[0].plan.frames
            self.context_pass(self._clean(frames), condition.cut(frames), contexts)
        elif kind == "causal":
            end = self.latest[-1][0].stop
            first = [cache.rewind(end).start for cache in self.branches][0]
            for span in [s for s, _ in self.latest if s.stop > first]:
                part = Span(max(span.start, first), span.stop)
                contexts = [Cached(cache, part) for cache in self.branches]
                self.context_pass(self._clean(range(part.start, part.stop)), condition.cut(part), contexts)

    def snapshot(self, device=None) -> tuple[dict, dict[str, torch.Tensor]]:
        """Returns (plain book, tensors) of the video so far; copies, on `device` or where the video is."""
        book = {"sizes": dict(self.sizes), "ledgers": [cache.ledger.state() for cache in self.branches]}
        book["latest"] = [[span.start, span.stop] for span, _ in self.latest]
        if self.key is RECACHE_INCOMPLETE:
            book["torn"] = True
        tensors = {f"{n}.{name}": t for n, c in enumerate(self.branches) for name, t in c.snapshot(device).items()}
        if self.latest:
            tensors["latest"] = torch.cat([x for _, x in self.latest], 1).to(device)
        return book, tensors

    def restore(self, book: dict, tensors: dict[str, torch.Tensor], condition: Condition) -> None:
        """Takes back what `snapshot` returned; condition: the one that was in force."""
        self.start(**book["sizes"])
        for number, (cache, ledger) in enumerate(zip(self.branches, book["ledgers"], strict=True)):
            own = {name: tensors[f"{number}.{name}"] for name in ("keys", "values") if ledger["slot_of"]}
            cache.restore(ledger, own)
        spans = [Span(*borders) for borders in book["latest"]]
        if spans:
            parts = tensors["latest"].to(self.device, copy=True).split([len(s) for s in spans], 1)
            self.latest = list(zip(spans, parts, strict=True))
            self.key = RECACHE_INCOMPLETE if book.get("torn") else condition.key

    def _now(self) -> float:
        """Returns the host's clock when the device has done its work; asked only where a condition changes."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def context_pass(self, x: torch.Tensor, condition: Condition, contexts: Sequence[Cached]) -> None:
        """One committing pass of each branch over clean (or re-noised) latents; if one fails, none is committed."""
        for number, context in enumerate(contexts):
            self.denoiser(x, self.context.sigma, condition.null() if number else condition, context)
        for context in contexts:
            context.commit()

    def _remember(self, span: Span, latents: torch.Tensor) -> None:
        """Keeps the latents of the last frames, as many as a recache may ask for."""
        window = self.cache.window_frames
        first = 0 if window == -1 else span.stop - max(window, self.cache.recache_frames)
        self.latest = [(s, x) for s, x in self.latest if s.stop > first] + [(span, latents)]

    def _clean(self, frames: Sequence[int]) -> torch.Tensor:
        """Returns the latents of frames that are remembered."""
        first = self.latest[0][0].start
        return select_frames(torch.cat([x for _, x in self.latest], 1), [frame - first for frame in frames])

    def _open(self, batch: int, chunk_frames: int, max_frames: int | None) -> list:
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

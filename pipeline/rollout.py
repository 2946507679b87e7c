"""A causal video, chunk by chunk: what a chunk may see, the passes that commit it, and the recache at a prompt switch.

Training, batch generation and sessions share it. A `Rollout` holds knobs; a `RolloutState` holds the video; an executor
(`pipeline/executor.py`) walks over the chunks. Each cache has exactly one committing pass per chunk, without gradient:
the context pass on the finished chunk (`cache.content: clean`), or each step's own pass (`same_step`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline.sampler import Sampler
from pipeline.solver import StepState
from pipeline.state import RECACHE_INCOMPLETE, Committed, RolloutState, portrait_key
from utils.offload import copier
from utils.rng import Rng
from wan.cache import CacheShape, Chunks, KVCache, Ring
from wan.condition import Condition
from wan.context import Cached, Prefill, Recached
from wan.denoiser import sigma_rows
from wan.generation import ContextConfig, PortraitConfig
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig, Ledger
from wan.schedule import Schedule
from wan.staging import Staged


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


@dataclass(frozen=True)
class Denoised:
    """A chunk whose steps are all done, before it is committed.

    latents: x0, or x behind the last of this process' steps. inputs: x before each step. contexts: [cache of a step]
    [guidance branch], used by these steps. solver: what the steps hand on besides x.
    """

    latents: torch.Tensor
    inputs: Sequence[torch.Tensor]
    contexts: Sequence[Sequence[Cached]]
    solver: StepState = field(default_factory=StepState)


@dataclass(frozen=True)
class Rollout:
    """The knobs of causal generation.

    training=True keeps keys in `Chunks` (gradients, no ring). dtype: of the caches; by default that of the weights.
    storage: `model.offload.caches`, of the keys of a generation; it changes where they lie, no bit of the video.
    distance(span, k) -> latent frames from a chunk's start to the reference at step k, where a portrait is pinned; by
    default the most that `portrait` allows.
    steps: the denoising steps that this process runs where several share a chunk (`pipeline/tpp.py`); None: all.
    noise(span, k) -> [B, F, C, h, w] normal noise: k = 0 starts the chunk, k >= 1 re-noises before step k, k = -1 is
    the context pass's.
    """

    denoiser: Any
    sampler: Sampler
    geometry: Geometry
    cache: CacheConfig = field(default_factory=CacheConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: bool = False
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    portrait: PortraitConfig = field(default_factory=PortraitConfig)
    distance: Callable[[Span, int], int] | None = None
    storage: str = "device"
    steps: range | None = None

    def own_steps(self, num_steps: int) -> range:
        """Returns which of the steps of a chunk run here."""
        return range(num_steps) if self.steps is None else self.steps

    @property
    def same_step(self) -> bool:
        """Whether each step has caches of its own."""
        return self.cache.content == "same_step"

    def start(self, batch: int, chunk_frames: int, max_frames: int | None) -> RolloutState:
        """Returns a video before its first frame. chunk_frames: its largest chunk; max_frames: its length, if known."""
        steps, branches = len(self._cached_steps()), 1 if self.sampler.guidance == 1 else 2
        caches: list[list[KVCache]] = [
            [self._cache(batch, chunk_frames, max_frames) for _ in range(branches)] for _ in range(steps)
        ]
        return RolloutState({"batch": batch, "chunk_frames": chunk_frames, "max_frames": max_frames}, caches)

    def restore(self, book: dict, tensors: dict[str, torch.Tensor], condition: Condition) -> RolloutState:
        """Returns the state of which `RolloutState.snapshot` made these; condition: the one that was in force."""
        state = self.start(**book["sizes"])
        state.load(book, tensors, condition, self.device)
        return state

    def set_condition(self, state: RolloutState, condition: Condition) -> float | None:
        """Makes `condition` the one in force; recaches if another was. Returns the seconds that took, or None.

        If it fails, the caches are inconsistent; the next call recaches again, under any condition. A portrait is
        pinned anew where it or the text changes.
        """
        if state.portrait_key != portrait_key(condition):
            self.pin(state, condition)
        if state.key == condition.key or not state.latest:  # the same, or nothing to recache
            state.key = condition.key
            return None
        start, state.key = self._now(), RECACHE_INCOMPLETE
        self.recache(state, condition)
        state.key = condition.key
        return self._now() - start

    @torch.no_grad()
    def pin(self, state: RolloutState, condition: Condition) -> None:
        """Writes the portrait of a condition into the caches, where the model has one: one pass a guidance branch."""
        state.portrait_key = None  # until it is whole
        if state.caches[0][0].ledger.pinned:
            for number, steps in enumerate(zip(*state.caches, strict=True)):
                context = Prefill(*steps)
                self.denoiser.prefill(condition.null() if number else condition, context)
                context.commit()
        state.portrait_key = portrait_key(condition)

    def contexts(self, state: RolloutState, span: Span, num_steps: int) -> list[list[Cached]]:
        """Returns what the passes of a chunk of so many steps may see: [cache of a step][guidance branch]."""
        pairs = zip(self._cached_steps(), state.caches[:num_steps], strict=False)
        return [[self._cached(cache, span, k) for cache in branches] for k, branches in pairs]

    def _cached_steps(self) -> range:
        """Returns the step of each cache: its own with same-step caches, else 0 for the only one."""
        return self.own_steps(self.sampler.num_steps) if self.same_step else range(1)

    def _cached(self, cache: KVCache, span: Span, k: int) -> Cached:
        """Returns the context of step k over a span, its portrait at the distance that was drawn for both."""
        if not cache.ledger.pinned:
            return Cached(cache, span)
        distance = self.distance(span, k) if self.distance else self.portrait.distance[1]
        return Cached(cache, span, self.portrait.place(cache.ledger.pinned, cache.ledger.plan(span), distance))

    def predictors(self, condition: Condition, contexts: Sequence[Sequence[Cached]]) -> list[Callable]:
        """Returns predict(x, sigma) -> velocity of each step's cache, guided if the sampler asks for it."""
        return [guided(self.denoiser, condition, branches, self.sampler.guidance) for branches in contexts]

    def commit_given(self, state: RolloutState, condition: Condition, chunk: Chunk, noise) -> Chunk:
        """Commits a conditioning chunk; returns it, with the seconds of a recache before it.

        Same-step caches see it as they would if the steps had led to it: diffused to each step's sigma.
        """
        seconds, latents, inputs = self.set_condition(state, condition), chunk.latents, []
        contexts = self.contexts(state, chunk.span, self.sampler.num_steps) if self.same_step else []
        with torch.no_grad():
            for k, branches in zip(self._cached_steps(), contexts, strict=False):
                inputs.append(self.sampler.diffuse(k, latents, lambda k: noise(chunk.span, k).to(latents)))
                self._run(inputs[-1], self._sigmas()[k], condition.cut(chunk.span), branches)
        self.commit(state, condition, chunk.span, Denoised(latents, inputs, contexts), noise)
        return replace(chunk, recache_seconds=seconds)

    @torch.no_grad()
    def commit(self, state: RolloutState, condition: Condition, span: Span, chunk: Denoised, noise) -> None:
        """Enters a finished chunk into the caches: keys of the context pass, or those that each step left."""
        latents = chunk.latents.detach()
        if self.same_step:
            contexts, inputs = chunk.contexts, tuple(x.detach() for x in chunk.inputs)
        else:
            contexts, inputs = self.contexts(state, span, 1), (latents,)
            self._run(self._shown(latents, span, noise), self.context.sigma, condition.cut(span), contexts[0])
        for branches in contexts:
            for context in branches:
                context.commit()
        window = self.cache.window_frames
        frames = -1 if window == -1 else max(window, self.cache.recache_frames)
        state.remember(Committed(span, latents, inputs), frames)

    @torch.no_grad()
    def recache(self, state: RolloutState, condition: Condition) -> None:
        """Computes the keys of the latest frames again under `condition`, by the passes that committed them.

        Latents are not re-noised. Reads only the kept sink and never writes it, so it can be retried.
        """
        kind = self.cache.recache
        if kind == "reset":
            for branches in state.caches:
                for cache in branches:
                    cache.reset()
        elif kind == "bidirectional":
            contexts: list[Cached] = [Recached(cache) for cache in state.caches[0]]
            self._recompute(state, 0, condition, contexts[0].plan.frames, contexts)
        elif kind == "causal":
            for number, branches in enumerate(state.caches[: state.num_inputs]):
                step = self._cached_steps()[number]
                first = [cache.rewind(state.next_frame).start for cache in branches][0]
                for span in [chunk.span for chunk in state.latest if chunk.span.stop > first]:
                    part = Span(max(span.start, first), span.stop)
                    contexts = [self._cached(cache, part, step) for cache in branches]
                    self._recompute(state, number, condition, range(part.start, part.stop), contexts)

    def _recompute(self, state: RolloutState, number: int, condition: Condition, frames, contexts) -> None:
        """Runs and commits the pass of one step's cache over frames that are remembered, under their condition."""
        self._run(
            state.inputs(number, frames), self._sigmas()[self._cached_steps()[number]], condition.cut(frames), contexts
        )
        for context in contexts:
            context.commit()

    def _run(self, x: torch.Tensor, sigma: float, condition: Condition, contexts: Sequence[Cached]) -> None:
        """Runs one pass of each guidance branch; the caches change when their contexts are committed."""
        for number, context in enumerate(contexts):
            self.denoiser(x, sigma, condition.null() if number else condition, context)

    def _shown(self, latents: torch.Tensor, span: Span, noise) -> torch.Tensor:
        """Returns what the context pass sees of a finished chunk."""
        knobs = self.context
        if not knobs.renoise:
            return latents
        sigma = sigma_rows(knobs.sigma, latents).to(torch.promote_types(latents.dtype, torch.float32))
        return Schedule(knobs.shift, knobs.rounding).diffuse(latents, noise(span, -1).to(latents), sigma)

    def _sigmas(self) -> Sequence[float]:
        """Returns the sigma of the committing pass of each step's cache."""
        return self.sampler.model_sigmas if self.same_step else (self.context.sigma,)

    def _now(self) -> float:
        """Returns the host's clock when the device has done its work; asked only where a condition changes."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _cache(self, batch: int, chunk_frames: int, max_frames: int | None) -> KVCache:
        """Returns an empty cache."""
        spec, heads = self.denoiser.spec, self.denoiser.cache_heads
        grid, denoiser = self.geometry.grid, self.denoiser
        shape = CacheShape(spec.num_layers, batch, heads, spec.head_dim, denoiser.frame_tokens(grid))
        pinned = (denoiser.pinned_runs(grid), denoiser.pinned_tokens(grid))
        ledger = Ledger(self.cache, chunk_frames, max_frames, *pinned)
        if self.training:
            return Chunks(ledger, shape)
        dtype = self.dtype or next(self.denoiser.parameters()).dtype
        if self.storage == "device":
            return Ring(ledger, shape, self.device, dtype)
        return Staged(ledger, shape, copier(self.device), self.device, dtype, at_home=self.storage == "cpu")


def draw_distance(portrait: PortraitConfig, rng: Rng) -> Callable[[Span, int], int]:
    """Returns distance(span, k) of a `Rollout`: drawn for each chunk and step, equal in every process and recache."""
    least, most = portrait.distance
    return lambda span, k: int(rng.integers(least, most + 1, "reference", span.start, k))


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

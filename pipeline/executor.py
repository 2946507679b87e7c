"""Walks over the chunks of a video: which steps run, in what order, and when a chunk is restarted.

`PlainExecutor` runs all steps in one process. One that gives each step to a rank of its own calls the same
`sampler.step(k, x, predict, noise, state)` and ships x and `state.state_dict()` to the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.rollout import Chunk, Denoised, Rollout
from pipeline.solver import StepState
from pipeline.state import RolloutState
from pipeline.track import Track
from wan.condition import Condition
from wan.geometry import Span

MAX_PREEMPTIONS = 4  # a chunk is restarted at most 4 times, so constant prompt switches cannot stall the video


def no_preemption() -> bool:
    """Returns False: the chunk is finished."""
    return False


@dataclass(frozen=True)
class PlainExecutor:
    """Runs every step of every chunk in this process."""

    rollout: Rollout

    def run(
        self, state: RolloutState, track: Track, spans: Sequence[Span], noise, given: Sequence[Chunk] = ()
    ) -> Iterator[Chunk]:
        """Yields the conditioning chunks, then one chunk per span; chunks that the state holds already are left out.

        given: clean chunks before the first span (a start image, the end of a video).
        """
        for chunk in given:
            if chunk.span.start >= state.next_frame:
                yield self.commit_given(state, track.at(chunk.span), chunk, noise)
        for span in spans:
            if span.start >= state.next_frame:
                yield self.generate_chunk(state, track, span, noise)

    def generate_chunk(self, state: RolloutState, track: Track, span: Span, noise) -> Chunk:
        """Returns the next chunk, committed. Where the track asks for it, it is restarted from the same noise."""
        _, chunk, seconds = self.make_chunk(state, track, span, noise)
        return Chunk(span, chunk.latents, recache_seconds=seconds)

    def make_chunk(
        self, state: RolloutState, track: Track, span: Span, noise
    ) -> tuple[Condition, Denoised, float | None]:
        """Returns the next chunk, committed, with the condition it was made under and the seconds of a recache."""
        seconds = None
        for restarts in itertools.count():
            condition = track.at(span)
            seconds = self.rollout.set_condition(state, condition) or seconds
            preempt = track.preempt_requested if restarts < MAX_PREEMPTIONS else no_preemption
            chunk = self.denoise(state, condition, span, noise, preempt)
            if chunk is not None:
                break
        self.commit(state, condition, span, chunk, noise)
        return condition, chunk, seconds

    def denoise(
        self,
        state: RolloutState,
        condition: Condition,
        span: Span,
        noise,
        preempt: Callable = no_preemption,
        begun: tuple[torch.Tensor, StepState] | None = None,
    ) -> Denoised | None:
        """Returns the next chunk, or None if `preempt()` was true between two steps; the caches stay as they are.

        begun: x and the state behind the steps that other processes took; changed by those of this one.
        """
        rollout, sampler = self.rollout, self.rollout.sampler.at(span)
        contexts = rollout.contexts(state, span, sampler.num_steps)
        predictors = rollout.predictors(condition.cut(span), contexts)
        draw = lambda k: noise(span, k).to(rollout.device)  # noqa: E731
        (x, steps), inputs = begun or (draw(0), sampler.start()), []
        for number, k in enumerate(rollout.own_steps(sampler.num_steps)):
            if number and preempt():
                return None
            if rollout.same_step:  # else nobody needs it, and memory should not hold it
                inputs.append(x)
            x = sampler.step(k, x, predictors[number if rollout.same_step else 0], draw, steps)
        return Denoised(x, inputs, contexts, steps)

    def commit_given(self, state: RolloutState, condition: Condition, chunk: Chunk, noise) -> Chunk:
        """Enters a conditioning chunk into the caches; returns it."""
        return self.rollout.commit_given(state, condition, chunk, noise)

    def commit(self, state: RolloutState, condition: Condition, span: Span, chunk: Denoised, noise) -> None:
        """Enters the finished chunk into the caches."""
        self.rollout.commit(state, condition, span, chunk, noise)

"""Sources that train a causal student on recorded data: noised clips (CausVid) and ODE pairs."""

from __future__ import annotations

import logging

import torch

from model.base import Sample
from model.noised import generate_from_data
from trainer.sources.config import NoisedDataConfig, OdePairsConfig
from trainer.sources.latents import Source, check_length, epoch_row
from utils.data.store import open_clips, open_pairs
from wan.generation import GenerationConfig
from wan.schedule import Schedule, step_sigmas

logger = logging.getLogger(__name__)


class NoisedData(Source):
    """Latents that the generator makes of noised clips. `real` are the clips themselves.

    A chunk at a video's start is noised to a level of `first_steps`, where there are any, for there it takes these.
    """

    def __init__(self, config: NoisedDataConfig, generation: GenerationConfig):
        self.config, self.clips = config, open_clips(config.clips, config.on_bad)
        check_length(config.clips, self.clips.shortest, config.frames)
        self.spans, self.cache = generation.spans(config.frames), generation.cache
        steps, clean = generation.steps, [0.0] if config.clean_step else []
        self.schedule = Schedule(steps.shift, steps.rounding)
        self.sigmas = torch.tensor([*step_sigmas(steps.steps, steps.shift, steps.warp, steps.clock), *clean])
        first = step_sigmas(steps.first_steps, steps.shift, steps.warp, steps.clock) if steps.first_steps else ()
        self.first = torch.tensor([*first, *clean]) if first else None

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Generates one batch from noised data; `step` counts samples, so generator and critic never share one."""
        config, index = self.config, self.index(step) if index is None else index
        rows = [self.clips[epoch_row(i, len(self.clips), rng)] for i in index]
        prompts = [prompt for _, prompt in rows]
        clean = torch.stack([clip[: config.frames] for clip, _ in rows]).float().to(roles.device)
        condition = roles.condition(prompts)
        noise = rng.at("sample", step, "data noise").normal_batch(clean.shape[1:], index).to(clean)
        sigma = self.draw_sigma(step, rng, index).to(clean.device)
        with torch.set_grad_enabled(with_grad):
            made = generate_from_data(
                roles.generator,
                clean,
                noise,
                sigma,
                condition,
                self.spans,
                self.schedule,
                self.cache,
                config.teacher_forcing,
            )
        return Sample(step, made, condition, index, self.spans, prompts, real=clean)

    def draw_sigma(self, step: int, rng, index) -> torch.Tensor:
        """Returns sigma [B, F]: one of the student's noise levels per chunk."""
        source, count = rng.at("sample", step, "data step"), len(self.sigmas)
        drawn = source.integers_batch(0, count, index, shape=(len(self.spans),))
        sigma = self.sigmas[drawn.repeat_interleave(torch.tensor([len(s) for s in self.spans]), 1)]
        if self.first is not None:
            own = source.at("first").integers_batch(0, len(self.first), index, shape=(1,))
            sigma[:, : len(self.spans[0])] = self.first[own]
        return sigma


class OdePairs(Source):
    """Trajectories with their prompts; fills trajectory, condition and spans.

    They hold the states at `steps`, which serve a video's first chunk, too: what lies between them at `first_steps`
    was not recorded.
    """

    def __init__(self, config: OdePairsConfig, generation: GenerationConfig):
        self.config, self.pairs = config, open_pairs(config.path, config.on_bad)
        check_length(config.path, self.pairs.shape[1], config.frames)
        self.spans = generation.spans(config.frames)
        if self.sigmas is None:
            logger.warning("%s does not say its noise levels; generation.steps is taken on trust", config.path)

    @property
    def num_states(self) -> int:
        """States of a trajectory, its clean end among them."""
        return self.pairs.shape[0]

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """Noise levels of the states, or None where the store does not say them."""
        return self.pairs.sigmas

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Returns the batch of one step: each pair once an epoch, in a new order each."""
        config, index = self.config, self.index(step) if index is None else index
        rows = [self.pairs[epoch_row(i, len(self.pairs), rng)] for i in index]
        prompts = [prompt for _, prompt in rows]
        trajectory = torch.stack([states[:, : config.frames] for states, _ in rows]).float().to(roles.device)
        condition = roles.condition(prompts, null=False)
        return Sample(step, None, condition, index, self.spans, prompts, trajectory=trajectory)

"""The source of trajectory matching: the generator's path by the pipeline's own sampler, and one step of it.

Generator and critic of a step look at one path. Whole clips: it is walked without gradient, each sample has a step of
its own, and the generator takes that step once more with gradient. Causal: chunk by chunk through the cache; the drawn
step has gradient in every chunk, which then goes on to its end without, so that the history is what inference sees.
Source: TDM (arXiv 2503.06674); Video-BLADE (arXiv 2508.10774).
"""

from __future__ import annotations

import torch

from model.base import Interval, Sample
from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout, draw_distance, guided
from pipeline.sampler import KeptSteps, sample
from pipeline.track import Fixed
from trainer.sources.config import TrajectoryConfig
from trainer.sources.latents import epoch_row
from trainer.sources.rollout import Generating
from utils.data.prompts import read_prompts
from wan.condition import Condition
from wan.context import Full
from wan.generation import GenerationConfig
from wan.geometry import Geometry, Span

Path = list[tuple[torch.Tensor, ...]]  # of each step: x before it and the x0 predicted there, without gradient


class TrajectorySource(Generating):
    """The generator's x0 at a drawn step of its path, with that step's interval."""

    def __init__(self, config: TrajectoryConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.few = self.few_steps()
        self.borders = (*self.few.sigmas, 0.0)
        whole = [Span(0, config.frames)]
        self.spans = whole if config.bidirectional else generation.spans(config.frames)
        self.prompts = [line.prompt for line in read_prompts(config.prompts)]
        self._paths: dict[tuple[int, range], Path] = {}

    def index(self, step: int) -> range:
        """Returns the numbers of the step's samples; step 2 n (generator) and 2 n + 1 (critic) have the same."""
        begun, number = self.origin
        first = number + (step // 2 - begun // 2) * self.config.batch
        return range(first, first + self.config.batch)

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Returns a drawn step of one batch's path, which is walked here, or was for the generator before the critic.

        with_grad: whether the x0 of that step carries gradient; then the path is kept for the critic.
        """
        index = self.index(step) if index is None else index
        prompts = [self.prompts[epoch_row(i, len(self.prompts), rng)] for i in index]
        condition, number = roles.condition(prompts), step // 2
        drawn = self.draw_steps(step, rng, index)
        path, walk = self._paths.pop((number, index), None), None
        if with_grad or path is None:
            grad_step = drawn[0] if with_grad and not self.config.bidirectional else None
            walk = self.walk(number, roles, rng, index, condition, grad_step)
            path = [tuple(states.detach() for states in walk.kept(k)) for k in range(self.few.num_steps)]
        if with_grad:
            self._paths = {key: kept for key, kept in self._paths.items() if key[0] == number} | {(number, index): path}
        x, x0 = (torch.stack([path[k][part][row] for row, k in enumerate(drawn)]) for part in (0, 1))
        sigmas = torch.tensor([[self.borders[k], self.borders[k + 1]] for k in drawn], dtype=torch.float64).to(x.device)
        interval = Interval(x, sigmas[:, 0], sigmas[:, 1])
        if with_grad and self.config.bidirectional:
            velocity = roles.generator(x, interval.start, condition, Full())
            x0 = self.few.schedule.velocity_to_x0(x, velocity, interval.start).to(x.dtype)
        elif with_grad:
            x0 = walk.kept(drawn[0])[1]
        return Sample(step, x0, condition, index, self.spans, prompts, interval=interval)

    def draw_steps(self, step: int, rng, index: range) -> list[int]:
        """Returns which step of the path each sample shows; causal: one for all, on all ranks."""
        if self.config.bidirectional:
            return rng.at("sample", step, "interval").integers_batch(0, self.few.num_steps, index).tolist()
        return [int(rng.shared(step, "interval").integers(0, self.few.num_steps))] * len(index)

    def walk(self, number: int, roles, rng, index: range, condition: Condition, grad_step: int | None) -> KeptSteps:
        """Returns the sampler that walked a step's path; grad_step: the step that is taken with gradient (causal)."""
        geometry, walk = self.geometry(roles), KeptSteps(self.few, grad_step)
        noise = self.noise(number, index, geometry, rng)
        with torch.set_grad_enabled(grad_step is not None):
            if self.config.bidirectional:
                (span,), predict = self.spans, guided(roles.generator, condition, [Full()], walk.guidance)
                draw = lambda k: noise(span, k).to(roles.device)  # noqa: E731
                sample(walk, draw(0), predict, draw)
            else:
                rollout = self.rollout(roles, geometry, walk, rng.shared(number, "distance"))
                state = rollout.start(len(index), max(map(len, self.spans)), self.config.frames)
                for _ in PlainExecutor(rollout).run(state, Fixed(condition), self.spans, noise):
                    pass
        return walk

    def rollout(self, roles, geometry: Geometry, walk: KeptSteps, rng) -> Rollout:
        """Returns the rollout of a causal path."""
        distance = draw_distance(self.generation.portrait, rng)
        return self.generator_rollout(roles, walk, geometry, distance=distance)

"""The source of self-forcing: the generator's own rollout, by the loop that generates videos."""

from __future__ import annotations

import torch

from model.base import Sample
from pipeline.config import FewStepConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout, draw_distance
from pipeline.sampler import FewStep, RandomExit
from pipeline.track import Fixed
from trainer.sources.config import RolloutConfig
from trainer.sources.latents import Source, check_length, epoch_row
from trainer.sources.window import loss_window
from utils.data.prompts import read_prompts
from utils.data.store import open_clips
from wan.condition import Condition
from wan.family import spec_for
from wan.generation import GenerationConfig
from wan.geometry import Geometry, Span


class Generating(Source):
    """What sources share that let the generator roll out as `generation` says: exit steps, noise, sampler."""

    generation: GenerationConfig

    def exits(self, step: int, count: int, rng, *key: int, first: bool = False) -> list[int]:
        """Returns the exit step of each chunk, equal on all ranks; key: tells several rollouts of a step apart.

        first: whether a video begins with the first of them; where its steps are its own, it draws one of these.
        """
        last, own = len(self.generation.steps.steps) - 1, self.generation.steps.first_steps if first else ()
        if self.config.last_step_only:
            exits = [last] * count
        else:
            drawn = rng.shared(step, "exit").integers(0, last + 1, *key, shape=(count,)).tolist()
            exits = drawn if self.config.exit_per_chunk else drawn[:1] * count
        if own and self.config.last_step_only:
            exits[0] = len(own) - 1
        elif own:
            exits[0] = int(rng.shared(step, "first exit").integers(0, len(own), *key))
        return exits

    def exit_range(self, exits: list[int], first: bool = False) -> tuple[int, int] | None:
        """Returns (the step stopped at, the next one) on the 1000-grid, if all chunks stopped alike.

        first: as in `exits`; a first chunk of other steps counts only where it is the only one.
        """
        own = self.generation.steps.first_steps if first else ()
        exits, alone = (exits[1:], False) if own and len(exits) > 1 else (exits, bool(own))
        steps = [int(s) for s in (own if alone else self.generation.steps.steps)] + [0]
        return (steps[exits[0]], steps[exits[0] + 1]) if len(set(exits)) == 1 else None

    def noise(self, step: int, index: range, geometry: Geometry, rng):
        """Returns noise(span, k) of one rollout, keyed by step, sample, frame and k."""
        source, shape = rng.at("sample", step, "rollout"), geometry.latent_shape(1)[1:]
        return lambda span, k: source.normal_batch((len(span), *shape), index, span.start, k)

    def few_steps(self) -> FewStep:
        """Returns the sampler of all steps."""
        return FewStepConfig().build(self.generation.steps)

    def generator_rollout(self, roles, sampler, geometry: Geometry, **more) -> Rollout:
        """Returns the generator's rollout by a sampler, as `generation` says. more: further arguments of `Rollout`."""
        knobs = self.generation
        return Rollout(
            roles.generator,
            sampler,
            geometry,
            knobs.cache,
            knobs.context,
            training=True,
            device=roles.device,
            portrait=knobs.portrait,
            **more,
        )

    def geometry(self, roles) -> Geometry:
        """Returns the videos' size."""
        return Geometry.of(spec_for(roles.generator.spec, roles.vae.strides), self.config.height, self.config.width)


class RolloutSource(Generating):
    """Generated latents with gradient at the exit step only."""

    def __init__(self, config: RolloutConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.clips = open_clips(config.clips, config.on_bad) if config.clips else None
        if self.clips:
            check_length(config.clips, self.clips.shortest, max(config.given, config.loss_frames))
        self.prompts = [] if self.clips else [line.prompt for line in read_prompts(config.prompts)]

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Rolls out one batch; `step` counts samples, so that generator and critic never share one."""
        config, index = self.config, self.index(step) if index is None else index
        clips, prompts = self.rows(index, rng)
        condition = self.condition(roles, prompts, index, rng)
        spans = self.generation.spans(self.length(step, rng))
        given = [Chunk(spans[0], _cut(clips, config.given).to(roles.device), given=True)] if config.given else []
        made_spans = spans[len(given) :]
        first = not made_spans[0].start
        exits = self.exits(step, len(made_spans), rng, first=first)
        geometry = self.geometry(roles)
        noise = self.noise(step, index, geometry, rng)
        distance = draw_distance(self.generation.portrait, rng.shared(step, "distance"))
        rollout = self.rollout(roles, geometry, dict(zip(made_spans, exits, strict=True)), spans[-1].stop, distance)
        with torch.set_grad_enabled(with_grad):
            state = rollout.start(len(prompts), max(len(span) for span in spans), spans[-1].stop)
            seen = Fixed(self.seen(condition, step, index, rng))
            video = PlainExecutor(rollout).run(state, seen, made_spans, noise, given)
            made = torch.cat([chunk.latents for chunk in video], 1)
        latents, mask, scored = self.window(made, condition, roles, len(spans[0]))
        if given and mask is None:
            mask = torch.arange(made.shape[1], device=made.device) >= config.given
        real = _cut(clips, latents.shape[1]).to(latents) if self.clips else None
        return Sample(step, latents, scored, index, spans, prompts, mask, self.exit_range(exits, first), real=real)

    def condition(self, roles, prompts: list[str], index, rng) -> Condition:
        """Returns what the rollouts of these samples are conditioned on."""
        return roles.condition(prompts)

    def seen(self, condition: Condition, step: int, index, rng) -> Condition:
        """Returns what the generator sees of the condition; what is scored has all of it."""
        return condition

    def window(self, made: torch.Tensor, condition: Condition, roles, head: int):
        """Returns (latents, mask or None, their condition) of what is scored of a rollout."""
        latents, mask = loss_window(made, self.config.loss_frames, roles.vae, head)
        return latents, mask, condition.cut(Span(made.shape[1] - latents.shape[1], made.shape[1]))

    def rows(self, index, rng) -> tuple[list[torch.Tensor], list[str]]:
        """Returns (real clips, prompts) of samples by their numbers in the run; no clips without a folder of them."""
        records = self.clips or self.prompts
        drawn = [records[epoch_row(i, len(records), rng)] for i in index]
        return ([clip for clip, _ in drawn], [prompt for _, prompt in drawn]) if self.clips else ([], drawn)

    def length(self, step: int, rng) -> int:
        """Returns this step's length in latent frames, equal on all ranks."""
        config, chunk = self.config, self.generation.chunk
        if not config.frames_max:
            return config.frames
        choices = (config.frames_max - config.frames) // chunk + 1
        return config.frames + chunk * int(rng.shared(step, "length").integers(0, choices))

    def rollout(self, roles, geometry: Geometry, exits: dict, total: int, distance) -> Rollout:
        """Returns the rollout; only frames inside the loss window carry gradient."""
        first = total - self.config.loss_frames
        sampler = RandomExit(self.few_steps(), exits.__getitem__, lambda span: span.start >= first)
        return self.generator_rollout(roles, sampler, geometry, distance=distance)


def _cut(clips: list[torch.Tensor], num_frames: int) -> torch.Tensor:
    """Returns the first frames of the clips, fp32 [B, F, C, h, w]."""
    return torch.stack([clip[:num_frames] for clip in clips]).float()

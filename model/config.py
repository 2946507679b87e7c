"""Knobs of the training objectives, without torch: a configuration is read and checked before anything heavy loads.

`needs` of an objective names what it reads apart from the generator: fields of `Sample` that its source must fill
(`null`: the condition of the unconditional branch) and networks that the training must build. One that needs a
`critic` is a distillation's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from utils.bounds import bounded
from wan.config import ROUNDINGS, TOP, Buildable
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig

MODES = ("bidirectional", "diffusion_forcing", "teacher_forcing", "same_step")


class LossConfig(Buildable):
    """What the configurations of losses share."""

    @property
    def bidirectional(self) -> bool:
        """Whether every frame attends to every other."""
        return False

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        """Yields what the loss cannot train of how the model will generate."""
        return iter(())


@dataclass
class ScoreConfig:
    """Guidance and noise levels of the scores; w is `uncond + w (cond - uncond)`, 1 = none."""

    real_guidance: float = bounded(4.0, -1000, 1000)
    fake_guidance: float = bounded(1.0, -1000, 1000)
    shift: float = bounded(5.0, 1e-3, 1000)  # of the drawn times
    low: float = bounded(0.02, 0, 1)  # sigma is clamped to [low, high]
    high: float = bounded(0.98, 0, 1)
    first: int = bounded(0, 0, TOP)  # times are drawn from [first, last) of the 1000-grid, before the shift
    last: int = bounded(1000, 0, TOP)
    from_exit: bool = False  # draw above the noise level at which the generator stopped (ancestors' ts_schedule)
    to_exit: bool = False  # and below the one it came from (ts_schedule_max)
    rounding: str = "none"  # none | table (published trainings)
    noise_shift: float = bounded(5.0, 1e-3, 1000)  # tables of rounding=table: of the mixing, of the networks' x0
    score_shift: float = bounded(8.0, 1e-3, 1000)

    def problems(self) -> Iterator[str]:
        if not 0 <= self.first < self.last <= TOP:
            yield f"first {self.first} and last {self.last} must rise within 0..{TOP}"
        if not 0 <= self.low < self.high <= 1:
            yield f"low {self.low} and high {self.high} must rise within 0..1"
        if self.rounding not in ROUNDINGS:
            yield f"rounding is {self.rounding!r}; write one of {ROUNDINGS}"


@dataclass
class DmdConfig(LossConfig):
    """Knobs of DMD: those of its scores."""

    consumer = "model.dmd:DmdLoss"
    needs = frozenset({"latents", "condition", "null", "teacher", "critic"})

    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class SidConfig(LossConfig):
    """alpha: weight of the critic's own error; 1.0 in the published runs."""

    consumer = "model.sid:SidLoss"
    needs = frozenset({"latents", "condition", "null", "teacher", "critic"})

    alpha: float = bounded(1.0, 0, 1000)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class DiscriminatorConfig:
    """layers: the tapped blocks (13, 21, 29 of a 1.3B). ffn_dim: width inside a reader. num_class: logits.

    lr_scale: the discriminator's learning rate as a multiple of the critic's (Self-Forcing trains both at one rate).
    time_embedding: whether the classifier also reads the critic's embedding of the noise level, ten times its size
    (Self-Forcing's concat_time_embeddings).
    """

    layers: tuple[int, ...] = bounded((13, 21, 29), 0, 1000)
    ffn_dim: int = bounded(8192, 1, 1 << 20)
    num_class: int = bounded(1, 1, 1 << 16)
    lr_scale: float = bounded(1.0, 1e-6, 1e6)
    time_embedding: bool = False


@dataclass
class GanConfig(LossConfig):
    """Weights of the two losses and of the penalties; sigma: width of the penalties' perturbation."""

    consumer = "model.gan:GanLoss"
    needs = frozenset({"latents", "condition", "real", "critic", "discriminator"})

    generator_weight: float = bounded(1e-2, 0, 1e6)
    discriminator_weight: float = bounded(1e-2, 0, 1e6)
    relativistic: bool = False
    r1_weight: float = bounded(0.0, 0, 1e9)
    r2_weight: float = bounded(0.0, 0, 1e9)
    r1_sigma: float = bounded(0.01, 1e-9, 1000)
    r2_sigma: float = bounded(0.01, 1e-9, 1000)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class TdmConfig(LossConfig):
    """Knobs of trajectory distribution matching; the student's grid and its eta are those of `generation.steps`.

    guidance: the teacher's w, uncond + w (cond - uncond). A score's sigma is drawn from the end of the student's step,
    or `low`, to `high`, uniformly before `shift`; on the clock `vp` it is that of a time below 1000 `high`.
    critic_weight: `flow` weighs the error of the critic's velocity, `vp` that of v-prediction (CogVideoX). regulariser:
    weight of the critic's distance to the teacher. huber: the loss is quadratic below huber sqrt(elements of a sample)
    and absolute above. normalise: the loss of each sample is divided by its distance to the teacher (CogVideoX as
    published).
    """

    consumer = "model.tdm:TdmLoss"
    needs = frozenset({"latents", "interval", "condition", "null", "teacher", "critic"})

    guidance: float = bounded(5.0, -1000, 1000)
    shift: float = bounded(1.0, 1e-3, 1000)
    low: float = bounded(0.02, 1e-4, 1)
    high: float = bounded(0.98, 1e-4, 1)
    critic_weight: str = "flow"  # flow | vp
    regulariser: float = bounded(0.0, 0, 1e6)
    huber: float = bounded(1e-3 / 128, 1e-15, 1e6)
    normalise: bool = False

    def problems(self) -> Iterator[str]:
        if self.low >= self.high or self.high == 1:
            yield f"low {self.low} and high {self.high} must rise within 0..1, 1 excluded; write e.g. 0.02 and 0.98"
        if self.critic_weight not in ("flow", "vp"):
            yield f"critic_weight is {self.critic_weight!r}; write flow or vp"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        steps = generation.steps
        if len(steps.steps) < 2:
            given = f"generation.steps.steps is {list(steps.steps)}"
            yield f"TDM matches a path of 2 or more steps, and {given}; write e.g. [1000, 875, ..., 125]"
            return
        if steps.rounding != "none":
            yield f"TDM has one exact clock and generation.steps.rounding is {steps.rounding}; write rounding: none"
        largest = steps.steps[1] / TOP
        if steps.clock == "vp":
            largest -= 1 / TOP
            if self.shift != 1:
                yield f"shift {self.shift} is of the clock flow and generation.steps.clock is vp; write shift: 1.0"
        elif steps.warp:
            largest = steps.shift * largest / (1 + (steps.shift - 1) * largest)
        if largest >= self.high:
            text = f"the first step ends at {largest:.3f} and scores are drawn from there to high {self.high}"
            yield f"{text}; write a larger high, fewer steps or a smaller generation.steps.shift"


@dataclass
class FlowConfig(LossConfig):
    """Knobs of the flow objective. Shift and rounding of the drawn sigma, and the cache, are those of `generation`.

    distance: where a portrait's reference stands in a masked forward. `rest` = where it was pinned; `drawn` = ahead of
    one chunk of the clip, drawn for each step, by a distance within `generation.portrait.distance`, as it stands for
    that chunk of a stream; for the other chunks it is then as far as it is.
    """

    consumer = "model.flow:FlowLoss"
    needs = frozenset({"latents", "condition", "spans"})

    mode: str = "bidirectional"  # bidirectional | diffusion_forcing | teacher_forcing | same_step
    weight: str = "uniform"  # uniform | bell (the ancestors' training weight)
    clean_chunks: float = bounded(0.0, 0, 1)  # diffusion forcing: share of chunks shown clean (the last one never is)
    context_sigma: float = bounded(0.0, 0, 1)  # teacher forcing: noise level of the clean half
    # or [low, high], drawn per chunk, spread as the noise of the other half is
    context_range: tuple[float, ...] = bounded((), 0, 1)
    distance: str = "rest"  # rest | drawn

    @property
    def bidirectional(self) -> bool:
        return self.mode == "bidirectional"

    def problems(self) -> Iterator[str]:
        if self.mode not in MODES:
            yield f"mode is {self.mode!r}; write one of {MODES}"
        if self.weight not in ("uniform", "bell"):
            yield f"weight is {self.weight!r}; write uniform or bell"
        if self.clean_chunks == 1:
            yield "clean_chunks is 1; write less, for a share of the chunks must have noise"
        if self.distance not in ("rest", "drawn"):
            yield f"distance is {self.distance!r}; write rest or drawn"
        elif self.distance == "drawn" and self.bidirectional:
            yield "distance is drawn for chunks of a stream and mode is bidirectional; write distance=rest"
        if not self.context_range:
            return
        low, high = (*self.context_range, -1.0)[:2]
        if len(self.context_range) != 2 or low >= high:
            yield f"context_range is {list(self.context_range)}; write two noise levels that rise in 0..1: [0, 0.2]"
        if self.context_sigma or self.mode != "teacher_forcing":
            yield "context_range is drawn for teacher_forcing's clean half; write mode=teacher_forcing, context_sigma=0"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        content = generation.cache.content
        if self.mode == "same_step" and content != "same_step":
            yield f"mode is same_step and generation.cache.content {content}; write content: same_step"
        elif self.mode == "teacher_forcing" or (self.mode == "diffusion_forcing" and content == "clean"):
            yield from mask_problems(generation.cache)


@dataclass
class OdeConfig(LossConfig):
    """No knobs of its own: a trajectory holds the noise levels of `generation.steps`, then its clean end."""

    consumer = "model.regression:OdeLoss"
    needs = frozenset({"trajectory", "condition", "spans"})

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from generation.steps.problems_if_none("ODE regression")
        yield from mask_problems(generation.cache)


def mask_problems(cache: CacheConfig) -> Iterator[str]:
    """Yields a cache that no single masked forward stands for."""
    if cache.rope == "read":
        yield "generation.cache.rope=read is not a single masked forward; train it by rollouts, or write rope: write"
    if cache.content == "same_step":
        yield "generation.cache.content=same_step is not a masked forward over clean frames; write content: clean"

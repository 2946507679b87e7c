"""Knobs of the training objectives, without torch: a configuration is read and checked before anything heavy loads.

`needs` of an objective names what it reads beside the generator: fields of `Sample` that its source must fill
(`null`: the condition of the unconditional branch) and networks that the training must build. One that needs a
`critic` is a distillation's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wan.config import ROUNDINGS, TOP, Buildable, clock_problems, step_problems
from wan.geometry import Span
from wan.ledger import CacheConfig

MODES = ("bidirectional", "diffusion_forcing", "teacher_forcing")


@dataclass
class ScoreConfig:
    """Guidance and noise levels of the scores; w is `uncond + w (cond - uncond)`, 1 = none."""

    real_guidance: float = 4.0
    fake_guidance: float = 1.0
    shift: float = 5.0  # of the drawn times
    low: float = 0.02  # sigma is clamped to [low, high]
    high: float = 0.98
    first: int = 0  # times are drawn from [first, last) of the 1000-grid, before the shift
    last: int = 1000
    from_exit: bool = False  # draw above the noise level at which the generator stopped (ancestors' ts_schedule)
    to_exit: bool = False  # and below the one it came from (ts_schedule_max)
    rounding: str = "none"  # none | table (published trainings)
    noise_shift: float = 5.0  # tables of rounding=table: of the mixing, of the networks' x0
    score_shift: float = 8.0

    def problems(self) -> Iterator[str]:
        if not 0 <= self.first < self.last <= TOP:
            yield f"first {self.first} and last {self.last} must rise within 0..{TOP}"
        if min(self.shift, self.noise_shift, self.score_shift) <= 0:
            yield "shift, noise_shift and score_shift must be positive; 1 = none"
        if not 0 <= self.low < self.high <= 1:
            yield f"low {self.low} and high {self.high} must rise within 0..1"
        if self.rounding not in ROUNDINGS:
            yield f"rounding is {self.rounding!r}; write one of {ROUNDINGS}"


@dataclass
class DmdConfig(Buildable):
    """Knobs of DMD: those of its scores."""

    consumer = "model.dmd:DmdLoss"
    needs = frozenset({"latents", "condition", "null", "teacher", "critic"})

    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class SidConfig(Buildable):
    """alpha: weight of the critic's own error; 1.0 in the published runs."""

    consumer = "model.sid:SidLoss"
    needs = frozenset({"latents", "condition", "null", "teacher", "critic"})

    alpha: float = 1.0
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class DiscriminatorConfig:
    """layers: the tapped blocks (13, 21, 29 of a 1.3B). ffn_dim: width inside a reader. num_class: logits.

    lr_scale: the discriminator's learning rate as a multiple of the critic's (Self-Forcing trains both at one rate).
    """

    layers: tuple[int, ...] = (13, 21, 29)
    ffn_dim: int = 8192
    num_class: int = 1
    lr_scale: float = 1.0

    def problems(self) -> Iterator[str]:
        if self.lr_scale <= 0:
            yield f"lr_scale is {self.lr_scale}; write a positive number, 1 = the critic's rate"


@dataclass
class GanConfig(Buildable):
    """Weights of the two losses and of the penalties; sigma: width of the penalties' perturbation."""

    consumer = "model.gan:GanLoss"
    needs = frozenset({"latents", "condition", "real", "critic", "discriminator"})

    generator_weight: float = 1e-2
    discriminator_weight: float = 1e-2
    relativistic: bool = False
    r1_weight: float = 0.0
    r2_weight: float = 0.0
    r1_sigma: float = 0.01
    r2_sigma: float = 0.01
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def problems(self) -> Iterator[str]:
        if min(self.r1_sigma, self.r2_sigma) <= 0:
            yield "r1_sigma and r2_sigma are divided by; write positive numbers"


@dataclass
class FlowConfig(Buildable):
    """Knobs of the flow objective."""

    consumer = "model.flow:FlowLoss"
    needs = frozenset({"latents", "condition", "spans"})

    mode: str = "bidirectional"  # bidirectional | diffusion_forcing | teacher_forcing
    shift: float = 5.0  # of the drawn sigma
    rounding: str = "none"  # table: as the ancestors look sigma up
    weight: str = "uniform"  # uniform | bell (the ancestors' training weight)
    clean_chunks: float = 0.0  # diffusion forcing: share of chunks shown clean (the last one never is)
    context_sigma: float = 0.0  # teacher forcing: noise of the clean half
    cache: CacheConfig = field(default_factory=CacheConfig)

    def problems(self) -> Iterator[str]:
        if self.mode not in MODES:
            yield f"mode is {self.mode!r}; write one of {MODES}"
        if self.weight not in ("uniform", "bell"):
            yield f"weight is {self.weight!r}; write uniform or bell"
        if not 0 <= self.clean_chunks < 1 or not 0 <= self.context_sigma <= 1:
            yield "clean_chunks must lie in [0, 1) and context_sigma in [0, 1]"
        yield from mask_problems(self.cache)


@dataclass
class OdeConfig(Buildable):
    """steps: the noise levels of the trajectory, noisiest first, on the 1000-grid; its clean end comes after them."""

    consumer = "model.regression:OdeLoss"
    needs = frozenset({"trajectory", "condition", "spans"})

    steps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    shift: float = 5.0
    warp: bool = True
    rounding: str = "none"
    cache: CacheConfig = field(default_factory=CacheConfig)

    def problems(self) -> Iterator[str]:
        yield from step_problems(self.steps)
        yield from clock_problems(self.shift, self.rounding)
        yield from mask_problems(self.cache)


def mask_problems(cache: CacheConfig, spans: Sequence[Span] = ()) -> Iterator[str]:
    """Yields a cache that no single masked forward stands for, or too small for a chunk of `spans`."""
    if cache.rope == "read":
        yield "rope: read is no single masked forward; train it by rollouts, or write rope: write"
    if cache.content == "same_step":
        yield "content: same_step is not a masked forward over clean frames; write content: clean"
    if spans:
        yield from cache.chunk_problems(max(map(len, spans)))

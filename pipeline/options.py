"""Knobs of `pipeline`, without torch: a configuration is read and checked before anything heavy loads.

They stand here and not beside their consumers for that reason alone; each `build` loads its consumer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module

from utils.config.field import collect_error
from wan.attention.config import AttentionConfig
from wan.family import published_specs
from wan.geometry import chunks
from wan.ledger import CacheConfig
from wan.options import DTYPES, PRECISIONS, clock_problems, step_problems

SOLVERS = ("unipc", "dpm++", "euler")
SAMPLERS = {
    "few_step": "pipeline.options:FewStepConfig",
    "multi_step": "pipeline.options:MultiStepConfig",
}


@dataclass
class FewStepConfig:
    """x0 prediction and re-noising at a short list of steps (distilled models)."""

    steps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    shift: float = 5.0
    warp: bool = True  # the list indexes the shifted table, as the models were trained
    rounding: str = "none"
    guidance: float = 1.0  # w; 1 = the conditional prediction alone

    def problems(self) -> Iterator[str]:
        yield from step_problems(self.steps)
        yield from clock_problems(self.shift, self.rounding)

    def build(self):
        """Returns the sampler."""
        return import_module("pipeline.sampler").few_step(self)


@dataclass
class MultiStepConfig:
    """A solver of the probability flow with classifier-free guidance (undistilled models)."""

    solver: str = "unipc"  # unipc | dpm++ | euler
    num_steps: int = 50
    shift: float = 5.0
    guidance: float = 5.0  # w of uncond + w (cond - uncond)
    guidance_high: float = 0.0  # w of the high-noise expert of a model that has two; 0 = the same

    def problems(self) -> Iterator[str]:
        yield from solver_problems(self.solver, self.num_steps, self.shift)

    def build(self):
        """Returns the sampler."""
        return import_module("pipeline.sampler").multi_step(self)


@dataclass
class ModelConfig:
    """Which model. path: a directory (official, diffusers or ours) or a hub name; spec: its name where
    the folder does not tell; checkpoint: other weights for its transformer; lora: a change of these."""

    path: str = "assets/digits"
    spec: str = ""
    checkpoint: str = ""
    use_ema: bool = False
    lora: str = ""
    lora_merge: bool = False  # add the LoRA to the weights (faster) instead of running it beside them (as published)
    lora_alpha: float = 0.0  # 0 = the rank (scale 1), as LongLive trains
    dtype: str = "bf16"  # fp32 | bf16
    precision: str = "weights"  # weights | upstream (fp32 modulation and head, for undistilled Wan weights)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def problems(self) -> Iterator[str]:
        if self.dtype not in DTYPES or self.precision not in PRECISIONS:
            yield f"model.dtype must be one of {DTYPES}, model.precision one of {PRECISIONS}"
        if self.spec and self.spec not in published_specs():
            yield f"model.spec {self.spec!r} is unknown; write one of {sorted(published_specs())}"
        if self.lora and not self.checkpoint:
            yield "model.lora changes a base checkpoint: write model.checkpoint too"


@dataclass
class ContextConfig:
    """The context pass: `sigma` is the time told to the network, `renoise` mixes x0 to it first.

    The ancestors' training tells 0 and mixes (their table's last sigma is not 0); ours does neither.
    """

    sigma: float = 0.0
    renoise: bool = False
    rounding: str = "none"
    shift: float = 5.0

    def problems(self) -> Iterator[str]:
        yield from clock_problems(self.shift, self.rounding)
        if not 0 <= self.sigma <= 1:
            yield f"context.sigma is {self.sigma}; write a number in [0, 1]"


@dataclass
class CausalConfig:
    """chunk: latent frames denoised together. first_chunk: length of the first one, 0 = the same."""

    chunk: int = 3
    first_chunk: int = 0
    cache: CacheConfig = field(default_factory=CacheConfig)
    context: ContextConfig = field(default_factory=ContextConfig)

    def problems(self) -> Iterator[str]:
        if self.chunk < 1 or self.first_chunk < 0:
            yield "chunk must be at least 1 and first_chunk must not be negative"

    def problems_with(self, config) -> Iterator[str]:
        """Yields a length that does not fill chunks, or a window too small for them."""
        yield from (f"pipeline.{text}" for text in self.cache.chunk_problems(max(self.chunk, self.first_chunk)))
        data = config.data
        if any(self.problems()):
            return
        if not config.seconds and not (data.i2v or data.initial_latents or data.start_image):
            yield from collect_error(chunks, config.num_output_frames, self.chunk, self.first_chunk or None)

    def build(self, bundle, sampler, geometry):
        """Returns the pipeline."""
        return import_module("pipeline.causal").Causal(self, bundle, sampler, geometry)


@dataclass
class BidirectionalConfig:
    """No knobs of its own: the length is the clip's."""

    def problems_with(self, config) -> Iterator[str]:
        """Yields what this pipeline cannot do."""
        if config.data.initial_latents or config.data.start_video:
            yield "initial_latents and start_video are continued chunk by chunk; write pipeline.name=causal"
        if config.data.scheduled:
            yield "a script's prompts change from chunk to chunk; write pipeline.name=causal"

    def build(self, bundle, sampler, geometry):
        """Returns the pipeline."""
        return import_module("pipeline.bidirectional").Bidirectional(bundle, sampler)


def solver_problems(name: str, num_steps: int, shift: float) -> Iterator[str]:
    """Yields an unknown solver, no steps, or a shift that is not positive."""
    if name not in SOLVERS:
        yield f"solver {name!r} is unknown; write one of {SOLVERS}"
    if num_steps < 1 or shift <= 0:
        yield f"num_steps {num_steps} must be at least 1 and shift {shift} positive"

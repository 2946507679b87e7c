"""The typed configuration of a generation; composes the knobs that stand beside their consumers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import PIPELINES
from pipeline.options import SAMPLERS, ModelConfig
from utils.config.field import collect_error, one_of
from utils.config.layer import parse_overrides, read_defaults, read_recipe
from utils.config.load import load
from utils.data.schedules import LARGEST, LARGEST_SEED, SUFFIX, parse_switch_frames
from wan.codec import DECODERS
from wan.codec.config import VAEDecoderConfig
from wan.options import TextConfig, VAEConfig

DEFAULTS = Path(__file__).parent.parent / "configs" / "default_config.yaml"
LONGEST = 1_000_000  # latent frames of a video, days: more is a mistake, and their chunks would fill the memory
FASTEST = 1000  # frames per second
LIMITS = {  # the least and the most of each number
    "num_output_frames": (1, LONGEST),
    "num_samples": (1, 1_000_000),
    "batch": (1, LARGEST),
    "height": (0, 16384),
    "width": (0, 16384),
    "seconds": (0, LONGEST),
    "seed": (0, LARGEST_SEED),
    "threads": (0, LARGEST),
}


@dataclass
class DataConfig:
    """Where prompts come from: a text file, scripts (.jsonl), a folder of images with captions (i2v), one prompt."""

    path: str = ""
    extended_path: str = ""  # line-aligned rewritten prompts; the plain ones name the files
    prompt: str = ""
    i2v: bool = False  # path is a folder of images
    noise: str = ""  # a safetensors file with the start noise `noise` [N, F, C, h, w]
    initial_latents: str = ""  # a safetensors file with `latents` [N or 1, F, C, h, w] to go on from
    start_image: str = ""  # a picture that all videos start from, or a folder with one for each line of the prompts
    start_video: str = ""  # the same with videos, whose end is the videos' start
    start_seconds: float = 0.0  # how much of a video's end, cut to whole chunks; 0 = what the window holds
    switch_frames: Any = ()  # latent frames at which scripts without ends change their prompt; [40, 80] or "40, 80"
    keep_going: bool = False  # make the other videos of a script that has bad lines, which are listed at the end

    @property
    def scheduled(self) -> bool:
        """True if the path is a file of scripts."""
        return self.path.lower().endswith(SUFFIX)

    def problems(self) -> Iterator[str]:
        yield from collect_error(parse_switch_frames, self.switch_frames)
        if self.scheduled and self.extended_path:
            yield f"extended_path rewrites the lines of a text file and {self.path} is a script; drop it"
        if self.extended_path and not self.path:
            yield "extended_path needs path, whose lines it rewrites"
        if self.prompt and self.path:
            yield "write either prompt or path, not both"
        names = ("i2v", "initial_latents", "start_image", "start_video")
        if len(starts := [name for name in names if getattr(self, name)]) > 1:
            yield f"{' and '.join(starts)} each tell what the videos start from; write one"
        if not 0 <= self.start_seconds <= LARGEST or (self.start_seconds and not self.start_video):
            yield f"start_seconds is {self.start_seconds}; write how much of start_video is used, 0 to {LARGEST}"


@dataclass
class OutputConfig:
    """What is written, and where. fps 0 = the model's own."""

    folder: str = "outputs"
    fps: float = 0
    crf: int = 18  # quality of the MP4: 0 lossless .. 51
    gif: bool = False
    sheet: bool = True  # a contact sheet of the whole run
    latents: bool = False  # also <name>.safetensors
    save_with_index: bool = False  # <line>-<sample> instead of the prompt as file name
    overwrite: bool = False  # make finished videos anew
    save_every_seconds: float = 30.0  # of the video, between snapshots from which a killed run goes on; 0 = none
    resume: bool = False  # go on with the videos of a run that was killed, from their snapshots

    def problems(self) -> Iterator[str]:
        if not 0 <= self.save_every_seconds < math.inf:
            yield f"save_every_seconds is {self.save_every_seconds}; write seconds, or 0 for no snapshots"
        if not 0 <= self.fps <= FASTEST or not 0 <= self.crf <= 51:
            yield f"fps is {self.fps} and crf {self.crf}; fps must lie in 0..{FASTEST}, crf must lie in 0..51"
        if self.gif and self.fps > 50:
            yield f"a GIF shows at most 50 frames a second and fps is {self.fps}; write output.gif=false"


@dataclass
class InferConfig:
    """One generation run. Sizes in pixels (0 = the model's own), length in latent frames or seconds."""

    model: ModelConfig = field(default_factory=ModelConfig)
    pipeline: Any = one_of(PIPELINES, default="causal")
    sampler: Any = one_of(SAMPLERS, default="few_step")
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    decoder: Any = one_of(DECODERS, default="vae")  # what makes the pixels; the VAE still encodes starts
    text: TextConfig = field(default_factory=TextConfig)
    negative_prompt: str = ""
    height: int = 0
    width: int = 0
    num_output_frames: int = 21
    seconds: float = 0.0  # if given, the length instead of num_output_frames, rounded up to whole chunks
    num_samples: int = 1
    batch: int = 1  # videos made together
    seed: int = 0
    threads: int = 0  # torch threads of this process; 0 = torch's own choice

    def problems(self) -> Iterator[str]:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                yield f"{name} is {getattr(self, name)}; write {least} to {most}"
        if self.vae.tiling and isinstance(self.decoder, VAEDecoderConfig):
            yield "vae.tiling decodes whole clips and a generation decodes a stream; write vae.tiling=false"
        yield from self.pipeline.problems_with(self)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()):
    """Returns (InferConfig, origins) of a recipe with `key=value` overrides."""
    layers = [*read_defaults(DEFAULTS, "infer"), *read_recipe(path), *parse_overrides(list(overrides))]
    return load(InferConfig, layers)

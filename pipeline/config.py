"""The typed configuration of a generation, without torch: it is read and checked before anything heavy loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import EXECUTORS, PIPELINES, SAMPLERS, ancestors
from pipeline.lora import LoraEntry, parse_loras, plain_loras
from pipeline.portrait import parse_area
from pipeline.trained import find_trained
from utils.bounds import bounded
from utils.config.field import collect_error, file_path, one_of
from utils.config.layer import parse_overrides, read_defaults, read_recipe
from utils.config.load import load
from utils.config.renamed import OldKeys
from utils.data.schedules import LARGEST, LARGEST_SEED, is_schedule, parse_switch_frames
from wan.attention.config import SPARSE, AsaConfig, AttentionConfig
from wan.audio.config import AudioConfig
from wan.codec import DECODERS
from wan.codec.config import VAEDecoderConfig
from wan.config import BATCH, DTYPES, LARGEST_SIDE, LINEARS, LONGEST, PRECISIONS, Buildable, TextConfig, VAEConfig
from wan.family import published_specs
from wan.generation import GenerationConfig

DEFAULTS = Path(__file__).parent.parent / "configs" / "default_config.yaml"
SOLVERS = ("unipc", "dpm++", "euler", "dpm_sde")
TRAILING = ("euler", "dpm_sde")
GRIDS = ("open", "table", "trailing")
CACHE_PLACES = ("device", "staged", "cpu")
DECODER_RANKS = ("auto", "own", "shared")
MOST_THREADS = 1024
FASTEST = 1000  # frames per second
OLD_KEYS = OldKeys(
    {
        "pipeline.chunk": "generation.chunk",
        "pipeline.first_chunk": "generation.first_chunk",
        "pipeline.cache": "generation.cache",
        "pipeline.context": "generation.context",
        "pipeline.context.snap": "generation.context.rounding",
        "sampler.steps": "generation.steps.steps",
        "sampler.shift": "generation.steps.shift",  # of few_step; multi_step has one
        "sampler.warp": "generation.steps.warp",
        "sampler.rounding": "generation.steps.rounding",
        "sampler.snap": "generation.steps.rounding",
    }
)


@dataclass
class FewStepConfig(Buildable):
    """x0 prediction and re-noising at the steps of `generation.steps` (distilled models)."""

    consumer = "pipeline.sampler:few_step"

    guidance: float = bounded(1.0, -1000, 1000)  # w; 1 = the conditional prediction alone


@dataclass
class MultiStepConfig(Buildable):
    """A solver of the probability flow with classifier-free guidance (undistilled models).

    grid: `open` = the steps end at sigma 0; `table` = they end one step above it, at the least sigma of a shifted
    table of 1000, and the last goes to 0 from there (diffusers' flow-matching Euler, as Live-Avatar was distilled);
    `trailing` = the times of a variance-preserving schedule (CogVideoX), taken where generation.steps.clock is vp.
    """

    consumer = "pipeline.sampler:multi_step"

    solver: str = "unipc"  # unipc | dpm++ | euler | dpm_sde (of second order, with fresh noise in each step)
    num_steps: int = bounded(50, 1, 10_000)
    shift: float = bounded(0.0, 1e-3, 1000, or_zero=True)  # 0 = generation.steps.shift
    guidance: float = bounded(5.0, -1000, 1000)  # w of uncond + w (cond - uncond)
    guidance_high: float = bounded(0.0, -1000, 1000)  # w of the high-noise expert of a model that has two; 0 = the same
    grid: str = "open"  # open | table | trailing; of euler, trailing of dpm_sde too

    def problems(self) -> Iterator[str]:
        yield from solver_problems(self.solver, self.num_steps, self.shift or 1.0, self.grid)


@dataclass
class OffloadConfig:
    """What lies in CPU memory while it does not work; a video's bits do not depend on it. On a CPU it changes nothing.

    caches: device = a ring for each step and branch, one contiguous memory | staged = pinned runs once for all steps,
    and one layer at a time laid out for its attention | cpu = the same with keys and values in CPU memory, fetched a
    layer ahead.
    """

    parts: bool = False  # encoders of text and picture, after use
    blocks: bool = False  # the transformer's blocks: at most three are on the GPU
    caches: str = "device"  # device | staged | cpu

    def problems(self) -> Iterator[str]:
        if self.caches not in CACHE_PLACES:
            yield f"model.offload.caches is {self.caches!r}; write one of {CACHE_PLACES}"


@dataclass
class ModelConfig:
    """Which model. path: a directory (official, diffusers or ours) or a hub name; spec: its name where
    the folder does not tell; checkpoint: other weights for its transformer; lora: changes of these (`pipeline.lora`),
    kept as they are recorded: a path, or a list of {path, strength}."""

    path: str = file_path("assets/digits")
    spec: str = ""
    checkpoint: str = file_path()
    use_ema: bool = False
    lora: Any = file_path()
    lora_merge: bool = False  # add the LoRA to the weights (faster) instead of running it next to them (as published)
    lora_alpha: float = bounded(0.0, 0, 1e6)  # 0 = as each file says, and the rank where it says nothing
    dtype: str = "bf16"  # fp32 | bf16
    precision: str = "weights"  # weights | upstream (fp32 modulation and head, for undistilled Wan weights)
    linears: str = "weights"  # weights (as they are) | fp8 (e4m3, a scale per tensor, as published) | fp8_rows
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    sparse: Any = one_of(SPARSE, default="none")  # which keys self-attention reads: none = all | asa

    def __post_init__(self):
        with suppress(ValueError):  # `problems` names what is wrong
            self.lora = plain_loras(parse_loras(self.lora))

    @property
    def loras(self) -> tuple[LoraEntry, ...]:
        """The LoRA files, in order."""
        return parse_loras(self.lora)

    def problems(self) -> Iterator[str]:
        if self.dtype not in DTYPES or self.precision not in PRECISIONS:
            yield f"model.dtype must be one of {DTYPES}, model.precision one of {PRECISIONS}"
        if self.linears not in LINEARS:
            yield f"model.linears is {self.linears!r}; write one of {LINEARS}"
        elif self.linears != "weights":
            if self.dtype != "bf16":
                yield f"model.linears={self.linears} runs in bf16; write model.dtype=bf16 instead of {self.dtype}"
            if not self.lora_merge and not any(collect_error(parse_loras, self.lora)) and self.loras:
                yield (
                    f"model.linears={self.linears} takes a LoRA only in the weights, and {self.loras[0].path} runs "
                    "next to them; write model.lora_merge=true"
                )
        if self.spec and self.spec not in published_specs():
            yield f"model.spec {self.spec!r} is unknown; write one of {sorted(published_specs())}"
        yield from collect_error(parse_loras, self.lora)


@dataclass
class CausalConfig(Buildable):
    """No knobs of its own: chunks, cache and context pass are those of `generation`."""

    consumer = "pipeline.causal:causal"

    def problems_with(self, config) -> Iterator[str]:
        """Yields a length that does not fill chunks."""
        data = config.data
        if any(config.generation.problems()) or config.seconds:
            return
        if not (data.i2v or data.initial_latents or data.start_image):
            yield from collect_error(config.generation.check_length, config.num_output_frames)


@dataclass
class BidirectionalConfig(Buildable):
    """No knobs of its own: the length is the clip's."""

    consumer = "pipeline.bidirectional:bidirectional"

    def problems_with(self, config) -> Iterator[str]:
        """Yields what this pipeline cannot do."""
        if config.data.initial_latents or config.data.start_video:
            yield "initial_latents and start_video are continued chunk by chunk; write pipeline.name=causal"
        if config.data.scheduled:
            yield "a script's prompts change from chunk to chunk; write pipeline.name=causal"
        steps = config.generation.steps
        if steps.first_steps and isinstance(config.chosen_sampler, FewStepConfig):
            yield (
                "generation.steps.first_steps are the steps of a video's first chunk, and pipeline.name is "
                "bidirectional, which makes all frames in one; write generation.steps.first_steps=[] and its steps as "
                "generation.steps.steps, or pipeline.name=causal"
            )


@dataclass
class AudioDrivenConfig(CausalConfig):
    """A portrait that talks: chunk by chunk, with the sound of each chunk's frames.

    audio: how the sound is heard. encoder: a wav2vec2 folder, "" = the model's own. clip_frames: 0 = chunk by chunk
    over a cache; n = clips of n latent frames, each as a whole, the latents before it its motion (undistilled S2V).
    num_clip: how many clips of clip_frames, or of the window, a video has at most; 0 = as long as its sound.
    """

    consumer = "pipeline.audio_driven:audio_driven"

    audio: AudioConfig = field(default_factory=AudioConfig)
    encoder: str = file_path()
    size: str = ""  # "704*384": an area; height and width follow the portrait's aspect. "" = the configuration's own
    clip_frames: int = bounded(0, 0, LONGEST)
    num_clip: int = bounded(0, 0, LONGEST)

    def clip_length(self, generation: GenerationConfig) -> int:
        """Returns the latent frames of a clip. Errors: ValueError where neither clips nor a window tell it."""
        if (length := self.clip_frames or generation.cache.window_frames) == -1:
            raise ValueError(
                "num_clip counts clips of the window's length, and generation.cache.window_frames is -1 (all frames); "
                "write the window, or seconds instead of num_clip"
            )
        return length

    def problems_with(self, config) -> Iterator[str]:
        """Yields other starts than a portrait, and a size that is none."""
        data = config.data
        if self.size:
            yield from (f"pipeline.{problem}" for problem in collect_error(parse_area, self.size))
            if config.height or config.width:
                yield "pipeline.size tells an area and height or width a size; write one of them"
        if data.scheduled or data.i2v or data.initial_latents or data.start_video or data.start_image:
            yield "a talking video starts from its portrait (data.image); leave out the other starts and schedules"
        if self.num_clip:
            yield from (f"pipeline.{problem}" for problem in collect_error(self.clip_length, config.generation))


@dataclass
class PlainConfig:
    """Every process runs all steps of its own videos."""

    def problems_with(self, config) -> Iterator[str]:
        """Yields nothing: it can do everything."""
        yield from ()


@dataclass
class TPPConfig(Buildable):
    """All ranks share every video, each with consecutive steps of its chunks (`pipeline/tpp.py`).

    decoder_rank: `own` = the last rank decodes and runs no step; `shared` = it runs the last steps too; `auto` = what
    is faster where a decode costs a quarter of a step.
    """

    consumer = "pipeline.batch.staged:run_staged"

    decoder_rank: str = "auto"

    def problems(self) -> Iterator[str]:
        if self.decoder_rank not in DECODER_RANKS:
            yield f"executor.decoder_rank is {self.decoder_rank!r}; write one of {', '.join(DECODER_RANKS)}"

    def problems_with(self, config) -> Iterator[str]:
        """Yields what ranks cannot share."""
        clips = isinstance(config.pipeline, AudioDrivenConfig) and config.pipeline.clip_frames
        refresh, steps = config.generation.portrait.refresh, config.num_steps
        if 0 < refresh < steps:
            yield (
                f"generation.portrait.refresh is {refresh} and a chunk has {steps} steps: the first step of chunk "
                f"{refresh} would wait for the last one of chunk 0; write {steps} or more"
            )
        if clips or not isinstance(config.pipeline, CausalConfig):
            yield "executor.name is tpp and the video is made as one piece; write pipeline.name=causal"
        elif config.generation.cache.content != "same_step":
            yield (
                "executor.name is tpp and cache.content is clean: a chunk's first step waits for the last one of the "
                "chunk before; write generation.cache.content=same_step where the model was trained so, or "
                "executor.name=plain"
            )
        if config.output.resume:
            yield "executor.name is tpp and writes no snapshots; leave out --resume, or write executor.name=plain"


def solver_problems(name: str, num_steps: int, shift: float, grid: str = "open") -> Iterator[str]:
    """Yields an unknown solver, no steps, a shift that is not positive, or a grid that the solver does not have."""
    if name not in SOLVERS:
        yield f"solver {name!r} is unknown; write one of {SOLVERS}"
    if grid not in GRIDS:
        yield f"grid {grid!r} is unknown; write one of {GRIDS}"
    elif grid == "table" and name != "euler" or grid == "trailing" and name not in TRAILING:
        known = "euler" if grid == "table" else " or ".join(TRAILING)
        yield f"grid {grid} is one of solver {known}, and solver is {name}; write solver={known}, or leave it out"
    if num_steps < 1 or shift <= 0:
        yield f"num_steps {num_steps} must be at least 1 and shift {shift} positive"


@dataclass
class DataConfig:
    """Where prompts come from: a text file, scripts (.jsonl), a folder of images with captions (i2v), one prompt."""

    path: str = file_path()
    extended_path: str = file_path()  # line-aligned rewritten prompts; the plain ones name the files
    prompt: str = ""
    i2v: bool = False  # path is a folder of images
    noise: str = file_path()  # a safetensors file with the start noise `noise` [N, F, C, h, w]
    initial_latents: str = file_path()  # a safetensors file with `latents` [N or 1, F, C, h, w] to go on from
    start_image: str = file_path()  # a picture that all videos start from, or a folder: one per line of the prompts
    start_video: str = file_path()  # the same with videos, whose end is the videos' start
    start_seconds: float = bounded(0.0, 0, LARGEST)  # of a video's end, cut to whole chunks; 0 = what the window holds
    image: str = file_path()  # the portrait of a talking video
    audio: Any = file_path()  # its sound: a file, or several (a list, or "a.wav+b.wav"), one for each speaker
    masks: Any = file_path()  # which part of the picture each speaker is: pictures, white there; "" = strips
    pose_video: str = file_path()  # of all talking videos: skeletons that they follow
    switch_frames: Any = ()  # latent frames at which scripts without ends change their prompt; [40, 80] or "40, 80"
    keep_going: bool = False  # make the other videos of a script that has bad lines, which are listed at the end

    @property
    def scheduled(self) -> bool:
        """True if the path is a file of scripts."""
        return is_schedule(self.path)

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
        if self.start_seconds and not self.start_video:
            yield f"start_seconds is {self.start_seconds} and start_video empty; write the video, or leave both out"


@dataclass
class OutputConfig:
    """What is written, and where. fps 0 = the model's own."""

    folder: str = file_path("outputs")
    fps: float = bounded(0.0, 0.1, FASTEST, or_zero=True)
    crf: int = bounded(18, 0, 51)  # quality of the MP4: 0 lossless .. 51
    gif: bool = False
    sheet: bool = True  # a contact sheet of the whole run
    latents: bool = False  # also <name>.safetensors
    save_with_index: bool = False  # <line>-<sample> instead of the prompt as file name
    overwrite: bool = False  # make finished videos anew
    save_every_seconds: float = bounded(30.0, 0, LONGEST)  # of video between snapshots to go on from; 0 = none
    resume: bool = False  # go on with the videos of a run that was killed, from their snapshots

    def problems(self) -> Iterator[str]:
        if self.gif and self.fps > 50:
            yield f"a GIF shows at most 50 frames a second and fps is {self.fps}; write output.gif=false"


@dataclass
class InferConfig:
    """One generation run. Sizes in pixels (0 = the model's own), length in latent frames or seconds."""

    model: ModelConfig = field(default_factory=ModelConfig)
    pipeline: Any = one_of(PIPELINES, default="causal")
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    executor: Any = one_of(EXECUTORS, default="plain")  # who runs the steps of a chunk
    sampler: Any = one_of(SAMPLERS, default=None)  # None = as the model was trained
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    decoder: Any = one_of(DECODERS, default="vae")  # what makes the pixels; the VAE still encodes starts
    text: TextConfig = field(default_factory=TextConfig)
    negative_prompt: str = ""
    height: int = bounded(0, 0, LARGEST_SIDE)
    width: int = bounded(0, 0, LARGEST_SIDE)
    num_output_frames: int = bounded(21, 1, LONGEST)
    seconds: float = bounded(0.0, 0, LONGEST)  # instead of num_output_frames, rounded up to whole chunks
    num_samples: int = bounded(1, 1, 1_000_000)
    batch: int = bounded(1, 1, BATCH)  # videos made together
    seed: int = bounded(0, 0, LARGEST_SEED)
    threads: int = bounded(0, 0, MOST_THREADS)  # torch threads of this process; 0 = torch's own choice
    verify_archives: bool = True  # compare the checksums of .pt and .pth files; a second per GB

    def problems(self) -> Iterator[str]:
        if self.vae.tiling and isinstance(self.decoder, VAEDecoderConfig):
            yield "vae.tiling decodes whole clips and a generation decodes a stream; write vae.tiling=false"
        if isinstance(self.sampler, FewStepConfig) and not self.generation.steps.steps:
            yield (
                "sampler.name is few_step and generation.steps.steps is empty (the model was not distilled); write the "
                "steps, e.g. [1000, 750, 500, 250], or sampler.name=multi_step"
            )
        talking = self.data.image or self.data.audio or self.data.masks or self.data.pose_video
        if talking and not isinstance(self.pipeline, AudioDrivenConfig):
            yield (
                "data.image, data.audio, data.masks and data.pose_video make a talking video; write "
                "pipeline.name=audio_driven, or leave them out"
            )
        if isinstance(self.model.sparse, AsaConfig) and isinstance(self.pipeline, CausalConfig):
            yield from (f"model.{problem}" for problem in self.model.sparse.causal_problems())
        chosen = self.chosen_sampler
        if (
            self.generation.steps.clock == "vp"
            and isinstance(chosen, MultiStepConfig)
            and chosen.solver not in TRAILING
        ):
            yield (
                f"sampler.solver is {chosen.solver} and generation.steps.clock vp, whose times it does not take; write "
                f"sampler.solver={' or '.join(TRAILING)}"
            )
        yield from self.pipeline.problems_with(self)
        yield from self.executor.problems_with(self)

    @property
    def chosen_sampler(self) -> FewStepConfig | MultiStepConfig:
        """The sampler that runs: the recipe's, or the one that the model was trained for; a solver with its shift."""
        steps = self.generation.steps
        chosen = self.sampler or (FewStepConfig() if steps.steps else MultiStepConfig())
        if isinstance(chosen, MultiStepConfig) and not chosen.shift:
            chosen = replace(chosen, shift=steps.shift)
        return chosen

    @property
    def num_steps(self) -> int:
        """Denoising steps of a chunk."""
        chosen = self.chosen_sampler
        return chosen.num_steps if isinstance(chosen, MultiStepConfig) else len(self.generation.steps.steps)

    def build_sampler(self):
        """Returns the sampler that runs."""
        return self.chosen_sampler.build(self.generation.steps)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()):
    """Returns (InferConfig, origins) of a recipe with `key=value` overrides; where both are silent, of the weights.

    Warns of values that differ from those that the weights were trained with.
    """
    ancestors.check_recipe(path, "infer", DEFAULTS.parent / "infer", set(InferConfig.__dataclass_fields__))
    defaults, given = read_defaults(DEFAULTS, "infer"), [*read_recipe(path), *parse_overrides(list(overrides))]
    trained = find_trained([*defaults, *given])
    layers = [*defaults, *([trained.layer] if trained else []), *given]
    config, origins = load(InferConfig, layers, ancestors.extend(OLD_KEYS, "infer"))
    if trained:
        trained.warn(config, origins)
    return config, origins

"""The typed configuration of a training, without torch: it is read and checked before anything heavy loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import LOSSES
from pipeline import PIPELINES, SAMPLERS, ancestors
from pipeline.config import LARGEST_SIDE, MOST_THREADS, BidirectionalConfig, CausalConfig, InferConfig
from trainer import SOURCES, TEXTS, TRAINERS
from trainer.checkpoint.folder import CheckpointConfig
from trainer.trackers import TrackConfig
from utils.bounds import bounded
from utils.config.field import check, collect_error, file_path, find_problems, one_of, values
from utils.config.layer import parse_overrides, read_defaults, read_recipe
from utils.config.load import load
from utils.config.renamed import OldKeys
from utils.data.schedules import LARGEST_SEED
from utils.digits.world import DigitsConfig
from utils.parallel.layout import LayoutConfig
from wan.attention.config import SPARSE, AsaConfig, AttentionConfig
from wan.config import BATCH, DTYPES, LONGEST, PRECISIONS, Buildable, VAEConfig
from wan.family import published_specs
from wan.generation import GenerationConfig

DEFAULTS = Path(__file__).parent.parent / "configs" / "default_config.yaml"
COUNT = 10**9  # steps: more is a mistake
PREVIEW = "a preview runs as the generator is trained; remove it"
OLD_KEYS = OldKeys(
    renamed={
        "trainer.source.chunk": "generation.chunk",
        "trainer.source.first_chunk": "generation.first_chunk",
        "trainer.source.cache": "generation.cache",
        "trainer.source.context": "generation.context",
        "trainer.source.context.snap": "generation.context.rounding",
        "trainer.source.sampler": "generation.steps",
        "trainer.source.sampler.snap": "generation.steps.rounding",
        "trainer.source.steps": "generation.steps.steps",
        "trainer.source.shift": "generation.steps.shift",
        "trainer.source.warp": "generation.steps.warp",
        "trainer.source.rounding": "generation.steps.rounding",
        "trainer.source.snap": "generation.steps.rounding",
        "trainer.source.save_films": "trainer.source.save_videos",
        "trainer.loss.cache": "generation.cache",
        "trainer.loss.steps": "generation.steps.steps",
        "trainer.loss.shift": "generation.steps.shift",
        "trainer.loss.warp": "generation.steps.warp",
        "trainer.loss.rounding": "generation.steps.rounding",
        "trainer.loss.snap": "generation.steps.rounding",
        "trainer.loss.score.snap": "trainer.loss.score.rounding",
        "trainer.ratio": "trainer.critic_updates_per_generator_update",
    },
    removed={
        "trainer.source.sampler.guidance": "a rollout has no guidance; remove it",
        **dict.fromkeys((f"preview.pipeline.{name}" for name in ("chunk", "first_chunk", "cache", "context")), PREVIEW),
        **dict.fromkeys((f"preview.sampler.{name}" for name in ("steps", "warp", "rounding", "snap")), PREVIEW),
    },
)


@dataclass
class RateConfig:
    """The weights whose names begin with `starts` (`audio_injector.`), and the rate that is theirs."""

    starts: str = ""
    lr: float = bounded(0.0, 0, 100)

    def problems(self) -> Iterator[str]:
        if not self.starts:
            yield "starts is empty; write the start of weights' names, e.g. audio_injector."


@dataclass
class OptimConfig:
    """One optimiser and its schedule. With `muon`, weights of two or more axes whose names start with
    `matrices` take `lr`, all others AdamW at `lr_rest`; with `adamw` all take `lr`. rates: weights with a rate of
    their own, whichever optimiser is theirs; the first entry that fits counts."""

    name: str = "adamw"  # adamw | muon
    lr: float = bounded(2e-6, 1e-15, 100)
    lr_rest: float = bounded(1.5e-3, 0, 100)
    betas: tuple[float, float] = bounded((0.9, 0.99), 0, 1)
    weight_decay: float = bounded(0.01, 0, 100)
    matrices: str = "blocks."
    rates: list[RateConfig] = field(default_factory=list)
    warmup: int = bounded(0, 0, COUNT)
    decay: float = bounded(0.0, 0, 1)  # share of the training over which the rate falls to 0
    decay_form: str = "linear"  # linear | cosine
    clip: float = bounded(10.0, 1e-9, 1e9)  # largest gradient norm

    def problems(self) -> Iterator[str]:
        if self.name not in ("adamw", "muon"):
            yield f"name is {self.name!r}; write adamw or muon"
        if self.decay_form not in ("linear", "cosine"):
            yield f"decay_form is {self.decay_form!r}; write linear or cosine"
        if 1 in self.betas:
            yield f"betas is {list(self.betas)}; write two numbers below 1, e.g. [0.9, 0.999]"


@dataclass
class EmaConfig:
    """decay 0 = no average; updates begin at `start_step` from the weights of then."""

    decay: float = bounded(0.99, 0, 1)
    start_step: int = bounded(0, 0, COUNT)

    def problems(self) -> Iterator[str]:
        if self.decay == 1:
            yield "decay is 1, an average that never moves; write less, 0 = none"


@dataclass
class LoraConfig:
    """Adapters next to the linears whose names match `targets`; rank 0 = none, the whole network is trained.

    alpha: scale is alpha / rank, 0 = rank. weights: a LoRA file to start from (ours, peft's, LongLive's).
    merged: exports hold base + adapters as one plain model, else the adapters alone.
    """

    rank: int = bounded(0, 0, 1 << 16)
    alpha: float = bounded(0.0, 0, 1e6)
    targets: str = r"blocks\."  # every linear of every block
    weights: str = file_path()
    role: str = "generator"  # which LoRA of `weights`, where it holds those of generator and critic
    merged: bool = False

    def problems(self) -> Iterator[str]:
        if (self.weights or self.merged) and not self.rank:
            yield "lora.weights and lora.merged need lora.rank (the rank of the adapters)"


@dataclass
class RoleConfig(Buildable):
    """One network. spec: its sizes when it starts from nothing; weights: a file or folder to start from. grow: with
    spec, weights of a smaller model, of which the fresh network takes what it has by name (S2V from a text model).

    dtype: what it computes in. A trained role keeps fp32 master weights in any case, a frozen one is
    stored in dtype. checkpointing: recompute activations during backward: less memory, more time.
    compile: torch.compile of the blocks. offload: weights lie in CPU memory between uses (frozen roles).
    """

    consumer = "trainer.roles:build_network"

    spec: str = ""
    weights: str = file_path()
    grow: str = file_path()
    use_ema: bool = False
    dtype: str = "fp32"
    precision: str = "weights"  # upstream: modulation, residual stream and head in fp32 whatever the dtype
    checkpointing: bool = False
    compile: bool = False
    offload: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    sparse: Any = one_of(SPARSE, default="none")  # which keys self-attention reads: none = all | asa

    def problems(self) -> Iterator[str]:
        if bool(self.spec) == bool(self.weights):
            yield "write either spec (start from nothing) or weights (a file or folder), one of the two"
        if self.grow and not self.spec:
            yield "grow names weights that a fresh network takes over; write spec, its sizes, and leave weights out"
        if self.spec and self.spec not in published_specs():
            yield f"spec {self.spec!r} is unknown; write one of {sorted(published_specs())}"
        if self.dtype not in DTYPES or self.precision not in PRECISIONS:
            yield f"dtype must be one of {DTYPES} and precision one of {PRECISIONS}"

    def problems_if_trained(self, name: str) -> Iterator[str]:
        """Yields knobs that are for frozen roles only."""
        if self.offload:
            text = f"{name}.offload is for frozen roles; a trained one saves memory by more ranks (layout.shard)"
            yield f"{text}: write {name}.offload=false"


NEEDED = {  # what a loss may need: its name for a reader, and how to get it
    "real": ("real clips", "set trainer.source.clips (encoded clips; source rollout or noised_data)"),
    "trajectory": ("recorded trajectories", "set trainer.source.name=ode_pairs"),
    "interval": ("the steps of a path", "set trainer.source.name=trajectory"),
    "latents": ("latents", "set another trainer.source.name than ode_pairs"),
    "teacher": ("a teacher", "set trainer.teacher.weights"),
    "null": ("a negative prompt's condition", "set trainer.source.name=rollout, trajectory, stream or noised_data"),
}


def needs_problems(trainer) -> Iterator[str]:
    """Yields what the loss of a trainer needs and neither its source fills nor the trainer builds."""
    built = {"discriminator"} | {name for name in ("teacher", "critic") if values(trainer).get(name)}
    for name in sorted(trainer.loss.needs - trainer.source.fills - built):
        what, advice = NEEDED.get(name, (name, "take another loss or source"))
        yield f"loss {trainer.loss.name} needs {what}, which source {trainer.source.name} does not give; {advice}"


class TrainerConfig(Buildable):
    """What the configurations of trainers share."""

    @property
    def whole(self) -> bool:
        """True if the generator makes whole clips, without a cache."""
        knobs = values(self)
        return knobs["loss"].bidirectional or knobs["source"].bidirectional

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        """Yields what of source, loss and networks does not go together with how the model will run."""
        knobs = values(self)
        if "generator" in knobs and isinstance(sparse := knobs["generator"].sparse, AsaConfig) and not self.whole:
            yield from (f"trainer.generator.{problem}" for problem in sparse.causal_problems())
        for name in [name for name in ("source", "loss") if name in knobs]:
            yield from (f"trainer.{name}: {text}" for text in knobs[name].problems_with(generation))


@dataclass
class RegressConfig(TrainerConfig):
    """A regression: the generator, where samples come from, what is minimised, how."""

    consumer = "trainer.regress:build_regress"

    generator: RoleConfig = field(default_factory=RoleConfig)
    source: Any = one_of(SOURCES, default="latents")
    loss: Any = one_of(LOSSES, default="flow")
    optim: OptimConfig = field(default_factory=OptimConfig)
    accumulate: int = bounded(1, 1, BATCH)  # parts that a rank's share of the batch is cut into
    ema: EmaConfig = field(default_factory=EmaConfig)
    text: Any = one_of(TEXTS, default="encoder")

    def problems(self) -> Iterator[str]:
        if "critic" in self.loss.needs:
            yield f"loss {self.loss.name} trains a critic too; write trainer.name=distill, or a loss without a critic"
        elif self.source.generates:
            text = f"source {self.source.name} generates its latents, which a regression cannot use"
            yield f"{text}; write source.name=latents or ode_pairs, or trainer.name=distill"
        else:
            yield from needs_problems(self)
        yield from self.generator.problems_if_trained("generator")


@dataclass
class DistillConfig(TrainerConfig):
    """A distillation: three networks, where samples come from, what is minimised, how."""

    consumer = "trainer.distill:build_distill"

    generator: RoleConfig = field(default_factory=RoleConfig)
    teacher: RoleConfig | None = None  # a GAN needs none
    critic: RoleConfig = field(default_factory=RoleConfig)
    source: Any = one_of(SOURCES, default="rollout")
    loss: Any = one_of(LOSSES, default="dmd")
    optim: OptimConfig = field(default_factory=OptimConfig)
    critic_optim: OptimConfig = field(default_factory=OptimConfig)
    critic_updates_per_generator_update: int = bounded(5, 1, BATCH)
    accumulate: int = bounded(1, 1, BATCH)  # parts that a rank's share of the batch is cut into
    ema: EmaConfig = field(default_factory=EmaConfig)
    text: Any = one_of(TEXTS, default="encoder")
    vae: VAEConfig = field(default_factory=VAEConfig)
    negative_prompt: str = ""

    def problems(self) -> Iterator[str]:
        if "critic" not in self.loss.needs:
            yield f"loss {self.loss.name} has no update of a critic; write trainer.name=regress, or loss.name=dmd"
        else:
            yield from needs_problems(self)
        yield from self.generator.problems_if_trained("generator")
        yield from self.critic.problems_if_trained("critic")


@dataclass
class Stage:
    """Part of a training: from `start` (fraction of all steps) on, clips of `frames`, `batch` at a time."""

    start: float = bounded(0.0, 0, 1)
    frames: int = bounded(17, 1, LONGEST)
    batch: int = bounded(2, 1, BATCH)


@dataclass
class CodecConfig(TrainerConfig):
    """The codec's size, its objective and its clips.

    base_dim, dim_mult, z_dim: of AutoencoderKLWan, residual, patches of 2, strides 4 x 8 x 8.
    kl_ramp: fractions of training between which beta rises. foreground: extra weight of pixels
    that hold ink, 3 % of all.
    """

    consumer = "trainer.codec:build_codec"

    base_dim: int = bounded(12, 1, 4096)
    dim_mult: tuple[int, ...] = bounded((1, 4, 4), 1, 64)
    z_dim: int = bounded(16, 1, 4096)
    beta: float = bounded(3e-4, 0, 1e6)
    kl_ramp: tuple[float, float] = bounded((0.15, 0.5), 0, 1)
    foreground: float = bounded(5.0, 0, 1e6)
    stages: list[Stage] = field(default_factory=lambda: [Stage(0.0, 9, 4), Stage(0.4, 17, 2), Stage(0.8, 33, 1)])
    digits: DigitsConfig = field(default_factory=DigitsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def problems(self) -> Iterator[str]:
        if not self.stages or self.stages[0].start != 0:
            yield "stages is empty, or the first does not start at 0; write start: 0"
        if self.kl_ramp[0] >= self.kl_ramp[1]:
            yield f"kl_ramp {self.kl_ramp} must be two fractions that rise"


@dataclass
class PreviewConfig:
    """Videos of the generator in training, every so many steps (0 = none).

    They are what inference.py makes of the exported weights, with the training's seed. sampler, pipeline: none = as the
    generator is trained: by its steps, or the solver of `multi_step` where it has none.
    prompts: a text file; empty: the source's own prompts. count: how many prompts, the first ones. num_frames:
    latent frames, 0 = the source's; height, width: in pixels, 0 = the model's own. batch: videos made together.
    ema: by the averaged weights where there are any, else by those of the moment. vae: the decoder's, where the
    training has no VAE of its own.
    """

    every: int = bounded(0, 0, COUNT)
    prompts: str = file_path()
    count: int = bounded(4, 1, BATCH)
    num_frames: int = bounded(0, 0, LONGEST)
    height: int = bounded(0, 0, LARGEST_SIDE)
    width: int = bounded(0, 0, LARGEST_SIDE)
    batch: int = bounded(4, 1, BATCH)
    ema: bool = True
    sampler: Any = one_of(SAMPLERS, default=None)
    pipeline: Any = one_of(PIPELINES, default=None)
    vae: VAEConfig = field(default_factory=VAEConfig)

    def requested(self, training: TrainConfig) -> InferConfig:
        """Returns the generation that a preview of a training is, as long as its source's samples.

        Errors: ValueError for what the pipeline cannot do (a length that fills no chunks).
        """
        trainer = training.trainer
        config = InferConfig(generation=training.generation, sampler=self.sampler, seed=training.seed)
        config.num_output_frames = self.num_frames or trainer.source.frames
        config.pipeline = self.pipeline or (BidirectionalConfig() if trainer.whole else CausalConfig())
        config.height, config.width, config.batch = self.height, self.width, self.batch
        config.vae = values(trainer).get("vae") or self.vae
        check(config)
        return config


@dataclass
class TrainConfig:
    """One training run. model: the directory with text encoder and VAE; logdir: where the run lives.

    save: false = a trial that leaves neither checkpoints nor the exported model.
    """

    model: str = file_path("assets/digits")
    logdir: str = file_path()
    seed: int = bounded(0, 0, LARGEST_SEED)
    steps: int = bounded(1000, 1, COUNT)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    threads: int = bounded(1, 1, MOST_THREADS)  # torch threads; on a busy machine two are slower than one
    verify_archives: bool = True  # compare the checksums of .pt and .pth files; a second per GB
    log_every: int = bounded(20, 1, COUNT)
    trainer: Any = one_of(TRAINERS, default="regress")
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    save: bool = True
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def problems(self) -> Iterator[str]:
        if any(find_problems(self.generation)):
            return
        unfit = list(self.trainer.problems_with(self.generation))
        yield from unfit
        if self.preview.every and "source" not in values(self.trainer):
            yield f"trainer {self.trainer.name!r} trains no generator of videos; write preview.every=0"
        elif self.preview.every and not unfit and not any(find_problems(self.trainer)):
            errors = collect_error(self.preview.requested, self)
            yield from (f"preview: {text}; or write preview.every=0" for text in errors)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()):
    """Returns (TrainConfig, origins) of a recipe with `key=value` overrides."""
    ancestors.check_recipe(path, "train", DEFAULTS.parent / "train", set(TrainConfig.__dataclass_fields__))
    layers = [*read_defaults(DEFAULTS, "train"), *read_recipe(path), *parse_overrides(list(overrides))]
    return load(TrainConfig, layers, ancestors.extend(OLD_KEYS, "train"))

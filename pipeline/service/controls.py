"""What a page offers of a recipe for talking videos, and what its user chose, as key=value overrides of the recipe.

A control that was left alone changes nothing, so the page's video is the command line's. The controls are those of
Live-Avatar's page; where the recipe's model leaves no choice, a control is fixed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import SOLVERS, AudioDrivenConfig, FewStepConfig, InferConfig, MultiStepConfig
from pipeline.lora import parse_loras
from utils.config.text import format_value
from utils.data.schedules import LARGEST_SEED
from wan.condition import FEATURES_PER_FRAME

MOST_CLIPS = 10_000  # and with this many a video is as long as its sound
LONGEST_WINDOW = 160  # pixel frames
MOST_STEPS = 50
# Of Live-Avatar; an area, the portrait's aspect decides height and width.
SIZES = ("1280*720", "1024*704", "832*480", "720*400", "704*384", "688*368", "384*256")
OWN_SIZE = "the model's own"
RANDOM = -1  # a seed


@dataclass(frozen=True)
class Choice:
    """What a user chose. sounds: one of each speaker; the other values as the controls show them."""

    image: str | None
    sounds: tuple[str, ...]
    prompt: str
    num_clip: int
    num_steps: int
    guidance: float
    infer_frames: int
    size: str
    seed: int
    solver: str
    lora: tuple[str, ...]


@dataclass(frozen=True)
class Controls:
    """Defaults and limits of the controls for one recipe.

    window: pixel frames of the window, or of a clip (0: no window, and no choice); window_step: of its slider.
    fixed_steps: the model was distilled for these steps alone. clip_seconds: that a clip of this window lasts.
    """

    num_steps: int
    fixed_steps: bool
    guidance: float
    window: int
    window_step: int
    sizes: tuple[str, ...]
    seed: int
    solvers: tuple[str, ...]
    lora: tuple[str, ...]
    fps: float
    sampler: str
    window_key: str

    @classmethod
    def of(cls, config: InferConfig, model_fps: float) -> Controls:
        """Returns the controls of a recipe. Errors: ValueError for one that makes no talking videos."""
        if not isinstance(config.pipeline, AudioDrivenConfig):
            raise ValueError("this recipe makes no talking videos; take one with pipeline.name=audio_driven")
        sampler, clip, generation = config.chosen_sampler, config.pipeline.clip_frames, config.generation
        window = clip or generation.cache.window_frames
        solvers: tuple[str, ...] = ("few_step",)
        if isinstance(sampler, MultiStepConfig):
            others = [solver for solver in SOLVERS if solver != sampler.solver and sampler.grid == "open"]
            solvers = (sampler.solver, *others)
        size = config.pipeline.size
        return cls(
            num_steps=config.num_steps,
            fixed_steps=isinstance(sampler, FewStepConfig),
            guidance=sampler.guidance,
            window=max(window, 0) * FEATURES_PER_FRAME,
            window_step=(1 if clip else generation.chunk) * FEATURES_PER_FRAME,
            sizes=tuple(dict.fromkeys((size, *SIZES))) if size else (OWN_SIZE,),
            seed=config.seed,
            solvers=solvers,
            lora=tuple(_written(entry) for entry in config.model.loras),
            fps=config.output.fps or model_fps,
            sampler="few_step" if isinstance(sampler, FewStepConfig) else "multi_step",
            window_key="pipeline.clip_frames" if clip else "generation.cache.window_frames",
        )

    @property
    def clip_seconds(self) -> float:
        """How long a clip of the recipe's window lasts."""
        return (self.window or self.window_step) / self.fps

    @property
    def windows(self) -> tuple[int, int]:
        """The least and the largest window that a slider offers, in pixel frames."""
        return self.window_step, max(LONGEST_WINDOW // self.window_step * self.window_step, self.window)

    def overrides(self, choice: Choice) -> list[str]:
        """Returns what the choice changes of the recipe. Errors: ValueError naming what is missing or cannot be."""
        changed = [*self._inputs(choice), *self._model(choice)]
        if choice.num_clip < MOST_CLIPS:
            window = choice.infer_frames if self.window else self.window_step
            changed.append(f"seconds={choice.num_clip * window / self.fps:g}")
        sampler = []
        if choice.num_steps != self.num_steps:
            if self.fixed_steps:
                raise ValueError(
                    f"the model was distilled for {self.num_steps} steps; write that, not {choice.num_steps}"
                )
            sampler.append(f"sampler.num_steps={choice.num_steps}")
        if choice.guidance != self.guidance:
            sampler.append(f"sampler.guidance={choice.guidance:g}")
        if choice.solver != self.solvers[0]:
            sampler.append(f"sampler.solver={choice.solver}")
        return [*changed, *([f"sampler.name={self.sampler}", *sampler] if sampler else [])]

    def _inputs(self, choice: Choice) -> list[str]:
        if not choice.image or not choice.sounds:
            raise ValueError("a talking video needs a portrait and a voice; give both")
        if not choice.prompt.strip():
            raise ValueError("the prompt is empty; write what the video shows")
        seed = secrets.randbelow(2**31) if choice.seed == RANDOM else choice.seed
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"the seed is {seed}; write a number of 0 to {LARGEST_SEED}, or {RANDOM} for any")
        found = [f"data.image={format_value(choice.image)}", f"data.audio={format_value(list(choice.sounds))}"]
        return [*found, f"data.prompt={format_value(choice.prompt)}", f"seed={seed}"]

    def _model(self, choice: Choice) -> list[str]:
        changed = []
        if self.window and choice.infer_frames != self.window:
            if choice.infer_frames % self.window_step:
                step = self.window_step
                raise ValueError(f"the window is {choice.infer_frames} frames; write a multiple of {step}")
            changed.append(f"{self.window_key}={choice.infer_frames // FEATURES_PER_FRAME}")
        if choice.size not in (self.sizes[0], OWN_SIZE):
            changed.append(f"pipeline.size={format_value(choice.size)}")
        return changed + self.lora_overrides(choice.lora)

    def lora_overrides(self, lora: tuple[str, ...]) -> list[str]:
        """Returns what these LoRA files change of the recipe; a strength that is not 1 stands behind a colon."""
        return [] if lora == self.lora else [f"model.lora={format_value(list(lora))}"]


def read_lora_lines(text: str) -> tuple[str, ...]:
    """Returns the LoRA files of a text, one a line. Errors: ValueError for one that is none."""
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    parse_loras(list(lines))
    return lines


def file_name(path: Path) -> str:
    """Returns the name under which a video is downloaded: ASCII, as it stands in a header."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in path.name)


def _written(entry) -> str:
    return entry.path if entry.strength == 1 else f"{entry.path}:{entry.strength:g}"

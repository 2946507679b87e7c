"""The typed configuration of a training; composes the knobs that stand beside their consumers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import TRAINERS
from trainer.checkpoint.folder import CheckpointConfig
from trainer.preview import PreviewConfig
from trainer.trackers import TrackConfig
from utils.config.field import collect_error, find_problems, one_of, values
from utils.config.layer import parse_overrides, read_defaults, read_recipe
from utils.config.load import load
from utils.parallel.layout import LayoutConfig

DEFAULTS = Path(__file__).parent.parent / "configs" / "default_config.yaml"


@dataclass
class TrainConfig:
    """One training run. model: the directory with text encoder and VAE; logdir: where the run lives.

    save: false = a trial that leaves neither checkpoints nor the exported model.
    """

    model: str = "assets/digits"
    logdir: str = ""
    seed: int = 0
    steps: int = 1000
    threads: int = 1  # torch threads of this process; on a busy machine two are slower than one
    log_every: int = 20
    trainer: Any = one_of(TRAINERS, default="regress")
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    save: bool = True
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def problems(self) -> Iterator[str]:
        if self.steps < 1 or self.log_every < 1 or self.threads < 1:
            yield "steps, log_every and threads must be at least 1"
        if self.preview.every and "source" not in values(self.trainer):
            yield f"trainer {self.trainer.name!r} trains no generator of videos; write preview.every=0"
        elif self.preview.every and not any(find_problems(self.trainer)):
            errors = collect_error(self.preview.requested, self.trainer)
            yield from (f"preview: {text}; or write preview.every=0" for text in errors)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()):
    """Returns (TrainConfig, origins) of a recipe with `key=value` overrides."""
    layers = [*read_defaults(DEFAULTS, "train"), *read_recipe(path), *parse_overrides(list(overrides))]
    return load(TrainConfig, layers)

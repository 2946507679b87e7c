"""The typed configuration of a training; composes the knobs that stand beside their consumers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import TRAINERS
from trainer.checkpoint.folder import CheckpointConfig
from trainer.preview import PreviewConfig
from trainer.trackers import TrackConfig
from utils.config.field import one_of
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

    def check(self):
        if self.steps < 1 or self.log_every < 1 or self.threads < 1:
            raise ValueError("steps, log_every and threads must be at least 1")
        if self.preview.every:
            self._check_preview()

    def _check_preview(self) -> None:
        if "source" not in vars(self.trainer):
            raise ValueError(f"trainer {self.trainer.name!r} trains no generator of videos; write preview.every=0")
        try:
            self.preview.requested(self.trainer)
        except ValueError as error:
            raise ValueError(f"preview: {error}; or write preview.every=0") from error


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()):
    """Returns (TrainConfig, origins) of a recipe with `key=value` overrides."""
    layers = [*read_defaults(DEFAULTS, "train"), *read_recipe(path), *parse_overrides(list(overrides))]
    return load(TrainConfig, layers)

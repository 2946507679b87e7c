"""A streaming long tuning of one-block networks: videos of six chunks, milliseconds a stretch."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config import load_recipe
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng

SECOND = ("a white three moves right", "a green one moves up", "a blue two moves down")
KNOBS = {
    "name": "stream",
    "batch": 2,
    "max_frames": 14,
    "loss_frames": 6,
    "min_new_frames": 2,
    "height": 32,
    "width": 32,
}
GENERATION = "generation={chunk: 2, steps: {steps: [1000, 500], shift: 3.0}, cache: {window_frames: 6, sink_frames: 2}}"


def overrides(folder: Path, prompts: Path, switch: str = "", **knobs) -> list[str]:
    """Returns the overrides that make a distillation a stream; `switch`: e.g. `switch_frames: 7`."""
    second = folder / "switch.txt"
    second.write_text("\n".join(SECOND))
    tree = {"prompts": prompts, **KNOBS, **knobs}
    if switch:
        tree |= {"switch_prompts": second}
    message = ", ".join([f"{key}: {value}" for key, value in tree.items()] + ([switch] if switch else []))
    return [f"trainer.source={{{message}}}", GENERATION]


def build(recipe: Path, given: list[str], layout: ParallelLayout | None = None):
    """Returns the method of a recipe, on this process alone."""
    config, _ = load_recipe(recipe, given)
    device = torch.device("cpu")
    return config.trainer.build(config, Rng(config.seed), device, layout or ParallelLayout.single())

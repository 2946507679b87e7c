"""Reads from recipes what an experiment compares and records: steps, updates, samplers, hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from scripts.experiments.plan import Training
from utils.config.field import values
from utils.config.layer import read_recipe
from utils.config.text import format_value
from utils.digest import file_hash


def get_steps(training: Training, root: Path) -> int:
    """Returns the optimiser steps that make the training's generator updates: the recipe's ratio times as many."""
    if training.updates is None:
        return int(_last_value(training, root, lambda tree: tree.get("steps")))
    return training.updates * get_update_ratio(training, root)


def get_update_ratio(training: Training, root: Path) -> int:
    """Returns how many steps there are to one generator update."""
    key = "critic_updates_per_generator_update"
    return int(_last_value(training, root, lambda tree: (tree.get("trainer") or {}).get(key)) or 1)


def _last_value(training: Training, root: Path, value_in):
    """Returns what the recipe, or the nearest of its bases, says; None if none does."""
    values = (value_in(layer.tree) for layer in reversed(read_recipe(root / training.recipe)))
    return next((value for value in values if value is not None), None)


def recipe_hash(path: str | Path) -> str:
    """Returns 12 hex digits of what a recipe says, with its bases, without comments and layout.

    It stands for the recipe and not for the code: a new knob with a default must not throw away days of training.
    """
    return _digest([layer.tree for layer in read_recipe(path)])[:12]


def content_hash(path: str | Path) -> str:
    """Returns 12 hex digits of a file's content."""
    return file_hash(path)[:12]


def short_hash(facts: dict) -> str:
    """Returns 8 hex digits of some facts, for a folder's name."""
    return _digest(facts)[:8]


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sampler_facts(recipe: Path, weights: Path, overrides: Sequence[str]) -> dict:
    """Returns {steps, guidance} and, where it has more or fewer, {first_steps}.

    Steps that a chunk of these weights and the first chunk of a video take, and the scale of the guidance.
    """
    from pipeline.config import load_recipe

    config, _ = load_recipe(recipe, [f"model.checkpoint={format_value(str(weights))}", *overrides])
    sampler = values(config.chosen_sampler)
    made = config.build_sampler()
    first = {"first_steps": made.first_num_steps} if made.first_num_steps != made.num_steps else {}
    return {"steps": made.num_steps, **first, "guidance": sampler["guidance"]}

"""What the digits table holds: rows, the trainings behind them, budgets; and what a plan is made of. Starts nothing."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from utils.config.layer import read_recipe
from utils.digest import file_hash

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"1x": 9, "10x": 90}  # latent frames; the models were trained on those of 1x
CURVE_WINDOWS = {"10x": 10}  # stretches of a video in the curves, each as long as a training clip
RECORDS = Path("docs/results/table")


@dataclass(frozen=True)
class Training:
    """Where weights come from: trained here by a recipe, or shipped (then `record` tells of their training).

    updates: of the generator, by budget; None: those of the recipe. needs: the data that has to be made first.
    overrides: key=value words of train.py. start: the weights that the generator starts from, if not the recipe's.
    """

    recipe: str
    updates: dict[str, int] | None = None
    needs: tuple[str, ...] = ()
    shipped: str = ""
    record: str = ""
    overrides: tuple[str, ...] = ()
    start: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table: weights and how they are sampled. lengths: those that apply."""

    title: str
    training: str
    infer: str = "configs/infer/digits_few_step.yaml"
    lengths: tuple[str, ...] = ("1x", "10x")


@dataclass(frozen=True)
class VideoSet:
    """The videos of one length: a prompt file, and how many of its prompts get a second video."""

    prompts: str
    count: int
    second: int = 0


@dataclass(frozen=True)
class Budget:
    """What a run of the whole table spends. pairs: ODE pairs of the teacher."""

    name: str
    seeds: int
    pairs: int
    videos: dict[str, VideoSet]


LATENTS = "runs/digits_latents"
PAIRS = "runs/digits_ode_pairs"
CLIPS, SHARD = 8000, 32  # encoded clips; clips or pairs in a shard

_VIDEOS_256 = VideoSet("prompts/digits_all.txt", 256, second=16)
BUDGETS = {
    "cpu": Budget(
        "cpu", 1, 960, {"1x": VideoSet("prompts/digits_128.txt", 128), "10x": VideoSet("prompts/digits_32.txt", 32)}
    ),
    "gpu": Budget("gpu", 3, 1920, {"1x": _VIDEOS_256, "10x": _VIDEOS_256}),
}

_DISTILLED = {"cpu": 600, "gpu": 2000}
TRAININGS = {
    "teacher": Training(
        "configs/train/digits_teacher.yaml", shipped="assets/digits/teacher", record="digits_teacher_training"
    ),
    "diffusion_forcing": Training(
        "configs/train/digits_diffusion_forcing.yaml",
        shipped="assets/digits/transformer",
        record="digits_causal_training",
    ),
    "teacher_forcing": Training("configs/train/digits_teacher_forcing.yaml", {"cpu": 3000, "gpu": 5000}, ("latents",)),
    "ode": Training("configs/train/digits_ode_init.yaml", {"cpu": 3000, "gpu": 3000}, ("ode_pairs",)),
    "dmd": Training("configs/train/digits_self_forcing_dmd.yaml", {"cpu": 1500, "gpu": 2000}),
    "causvid": Training("configs/train/digits_causvid.yaml", _DISTILLED, ("latents",)),
    "sid": Training("configs/train/digits_self_forcing_sid.yaml", _DISTILLED),
    "gan": Training("configs/train/digits_self_forcing_gan.yaml", _DISTILLED, ("latents",)),
}

_MANY = "configs/infer/digits.yaml"
ROWS = {
    "teacher": Row("teacher (bidirectional)", "teacher", "configs/infer/digits_teacher.yaml", ("1x",)),
    "diffusion_forcing": Row("diffusion forcing", "diffusion_forcing", _MANY),
    "teacher_forcing": Row("teacher forcing", "teacher_forcing", _MANY),
    "diffusion_forcing_4": Row("diffusion forcing, 4 steps, not distilled", "diffusion_forcing"),
    "teacher_forcing_4": Row("teacher forcing, 4 steps, not distilled", "teacher_forcing"),
    "ode": Row("ODE regression", "ode"),
    "causvid": Row("CausVid", "causvid"),
    "dmd": Row("Self-Forcing, DMD", "dmd"),
    "sid": Row("Self-Forcing, SiD", "sid"),
    "gan": Row("Self-Forcing, GAN", "gan"),
}


def choose_rows(names: str, rows: dict = ROWS) -> list[str]:
    """Returns row names of a comma-separated list, in table order; all of them for an empty one.

    A name with * stands for all that fit it. Errors: ValueError for a name that is no row.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or ["*"]
    for name in wanted:
        if not fnmatch.filter(rows, name):
            check_name(name, rows, "row")
    return [row for row in rows if any(fnmatch.fnmatchcase(row, name) for name in wanted)]


def check_name(name: str, table: Collection[str], what: str) -> None:
    """Raises ValueError with the nearest name if `name` is not in the table."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(table)}"
        raise ValueError(f"{what} {name!r} is unknown; {hint}")


def get_steps(training: Training, budget: str, root: Path = ROOT) -> int:
    """Returns the optimiser steps that make the budget's generator updates: the recipe's ratio times as many."""
    if training.updates is None:
        return int(_first(training, root, lambda tree: tree.get("steps")))
    return training.updates[budget] * get_update_ratio(training, root)


def get_update_ratio(training: Training, root: Path = ROOT) -> int:
    """Returns how many steps there are to one generator update."""
    return int(
        _first(training, root, lambda tree: (tree.get("trainer") or {}).get("critic_updates_per_generator_update")) or 1
    )


def _first(training: Training, root: Path, value_in):
    """Returns what the recipe, or the first of its bases that says it, holds; None if none does."""
    values = (value_in(layer.tree) for layer in reversed(read_recipe(root / training.recipe)))
    return next((value for value in values if value is not None), None)


def recipe_hash(path: str | Path) -> str:
    """Returns 12 hex digits of what a recipe says, with its bases, without comments and layout.

    It stands for the recipe and not for the code: a new knob with a default must not throw away days of training.
    """
    trees = [layer.tree for layer in read_recipe(path)]
    return hashlib.sha256(json.dumps(trees, sort_keys=True).encode()).hexdigest()[:12]


def content_hash(path: str | Path) -> str:
    """Returns 12 hex digits of a file's content."""
    return file_hash(path)[:12]


def mark(facts: dict) -> str:
    """Returns 8 hex digits of some facts, for a folder's name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]

"""Defines the nouns of an experiment: a plan is data, and scripts/experiments/experiment.py carries it out."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Training:
    """Says where weights come from: trained here by a recipe, or given (`shipped`).

    updates: of the generator; None: those of the recipe. needs: names of data sets that have to be made first.
    overrides: key=value words of train.py. start: the weights that the generator starts from, if not the recipe's;
    after: those of another training of the plan.
    record: docs/results/<record>.json says how shipped weights were trained; without it, records of videos name the
    weights and nothing else. hint: what to do if the weights of `shipped` or `start` are missing.
    """

    recipe: str = ""
    updates: int | None = None
    needs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    start: str = ""
    after: str = ""
    shipped: str = ""
    record: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Dataset:
    """Names a folder that has to hold `shards` files shard_*.safetensors, and the command that makes them."""

    folder: str
    shards: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class VideoSet:
    """Names a file of prompts or prompt schedules, and how many videos are made of it.

    second: how many prompts get a second video. A count that is below what the file holds takes its first lines.
    """

    prompts: str
    count: int
    second: int = 0

    @property
    def scheduled(self) -> bool:
        """True for prompt schedules, which say how long their videos are."""
        return self.prompts.endswith(".jsonl")


@dataclass(frozen=True)
class Measure:
    """Holds one measuring command without its --output.

    {videos} and {prompts} in its words stand for the folder and the prompt file. suffix: ends the result's file name.
    """

    words: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Case:
    """Describes the videos of one training's weights: how they are made, how they are measured, where that is recorded.

    row: its line in the tables; a row may have several cases. name: of its job. folder: of its videos, without the hash
    of their facts. frames: latent frames of a video. overrides: key=value words of inference.py. sheet: draw a contact
    sheet. record: stem of the JSON; `part` is its place in there, "" if the record holds nothing else. labels: facts
    that the record shows and that decide nothing.
    """

    row: str
    name: str
    folder: str
    training: str
    recipe: str
    videos: VideoSet
    frames: int
    measures: tuple[Measure, ...]
    record: str
    part: str = ""
    seed: int = 0
    overrides: tuple[str, ...] = ()
    sheet: bool = False
    labels: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Holds a whole experiment.

    budget: its name in the records. read(case, the JSON of each measure): returns the number of measured videos and
    the fields that the record keeps.
    """

    budget: str
    trainings: dict[str, Training]
    cases: tuple[Case, ...]
    read: Callable[[Case, list[dict]], tuple[int, dict]]
    data: dict[str, Dataset] = field(default_factory=dict)

    @property
    def rows(self) -> list[str]:
        """The names of the rows, in the order of the tables."""
        return list(dict.fromkeys(case.row for case in self.cases))


def choose_rows(names: str, rows: Collection[str]) -> list[str]:
    """Returns row names of a comma-separated list, in table order; all of them for an empty one.

    A name with * stands for all that fit it. Errors: ValueError for a name that fits none.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or ["*"]
    for name in wanted:
        if not fnmatch.filter(rows, name):
            check_name(name, rows, "row")
    return [row for row in rows if any(fnmatch.fnmatchcase(row, name) for name in wanted)]


def check_name(name: str, names: Iterable[str], what: str) -> None:
    """Raises ValueError with the nearest name if `name` is none of `names`."""
    if name not in (known := list(names)):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(known)}"
        raise ValueError(f"{what} {name!r} is unknown; {hint}")

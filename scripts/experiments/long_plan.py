"""Plan of the long and interactive videos: cache policies, rows, tunings, budget. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.plan import LENGTHS, ROOT, Budget, Training, VideoSet
from wan.geometry import Geometry
from wan.ledger import RECACHES
from wan.spec import SPECS

TRAINED = LENGTHS["1x"]  # latent frames of a training clip
WINDOW, CHUNK = 9, 3  # latent frames: what a query sees in all, and a chunk
LENGTH = 50  # training lengths of the longest videos
ENDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)  # training lengths at which a video is looked at
SHOWN = (1, 2, 5, 10, 20, 50)  # those of the table; the others are points of the curves
PROMPTS, SCRIPTS = VideoSet("prompts/digits_32.txt", 32), VideoSet("prompts/digits_switch_32.jsonl", 32)
INFER = "configs/infer/digits_few_step.yaml"
TUNING = "configs/train/digits_longlive_stream.yaml"
STUDENT = "runs/table/sid/seed0/export/transformer"  # the best few-step row of scripts/digits_table.py
RECORDS = Path("docs/results/long")
BUDGET = "long"
STAGES = {"before": "not tuned", "after": "tuned"}


@dataclass(frozen=True)
class CachePolicy:
    """What a cache of WINDOW latent frames keeps, and where keys are rotated. All layouts cost alike."""

    title: str
    sink: int
    rope: str

    def words(self, prefix: str) -> tuple[str, ...]:
        """Returns the key=value words of a recipe whose cache stands at `prefix`."""
        knobs = {"window_frames": WINDOW, "sink_frames": self.sink, "rope": self.rope}
        return tuple(f"{prefix}.{knob}={value}" for knob, value in knobs.items())


LAYOUTS = {
    "no_sink": CachePolicy("no sink", 0, "write"),
    "sink": CachePolicy("sink", 3, "write"),
    "relative": CachePolicy("sink, relative positions", 3, "read"),
}


@dataclass(frozen=True)
class LongRow:
    """Videos of one layout with the weights of one stage; with a recache they are scripts, whose prompts change."""

    layout: str
    stage: str
    recache: str = ""

    @property
    def title(self) -> str:
        """What the row is called in a table."""
        return self.recache or LAYOUTS[self.layout].title

    @property
    def videos(self) -> str:
        """The key of its videos in the budget."""
        return "switches" if self.recache else "films"

    @property
    def training(self) -> str:
        """The key of its weights in `trainings`."""
        return self.layout if self.stage == "after" else "student"

    @property
    def words(self) -> tuple[str, ...]:
        """The key=value words of its inference recipe."""
        switch = (f"pipeline.cache.recache={self.recache}",) if self.recache else ()
        return (f"pipeline.chunk={CHUNK}", *LAYOUTS[self.layout].words("pipeline.cache"), *switch)


ROWS = {f"{layout}_{stage}": LongRow(layout, stage) for layout in LAYOUTS for stage in STAGES}
ROWS |= {f"switch_{kind}_{stage}": LongRow("sink", stage, kind) for kind in RECACHES for stage in STAGES}


def trainings(student: str, updates: int | None = None) -> dict[str, Training]:
    """Returns where the weights of each row come from: the student as it is, and tuned for each layout.

    updates: of the generator in each tuning; None: those of the recipe. Errors: ValueError for less than 1.
    """
    if updates is not None and updates < 1:
        raise ValueError(f"--updates {updates}: write 1 or more")
    count = None if updates is None else {BUDGET: updates}
    tuned = {
        name: Training(TUNING, count, overrides=layout.words("trainer.source.cache"), start=student)
        for name, layout in LAYOUTS.items()
    }
    return {"student": Training("", shipped=student), **tuned}


def budget(videos: int) -> Budget:
    """Returns the budget of so many videos a row: the first ones, whose prompts are balanced at any number.

    Errors: ValueError for a number of videos that the prompt files do not hold.
    """
    if not 2 <= videos <= PROMPTS.count:
        raise ValueError(f"--videos {videos}: write 2 to {PROMPTS.count}, the number of prompts and of scripts")
    kinds = {"films": VideoSet(PROMPTS.prompts, videos), "switches": VideoSet(SCRIPTS.prompts, videos)}
    return Budget(BUDGET, 1, 0, kinds)


def ends_until(length: int) -> dict[int, int]:
    """Returns {training lengths: the pixel frame at which they end} of a video of `length` training lengths.

    Errors: ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"--length {length}: write how many training lengths the videos have, 1 or more")
    geometry = Geometry.of(SPECS["digits"])
    ends = {*(end for end in ENDS if end <= length), length}
    return {end: geometry.pixel_frames(end * TRAINED) for end in sorted(ends)}


def script_ends(path: str, root: Path = ROOT) -> int:
    """Returns the latent frames of the videos of a script file."""
    from utils.data.schedules import read_schedules

    return int(max(line.cues[-1].end.value for line in read_schedules(root / path)))

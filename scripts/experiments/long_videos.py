"""Plans long videos and prompt switches: cache policies before and after they were tuned for, one JSON a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.objectives import LENGTHS
from scripts.experiments.plan import Case, Measure, Plan, Training, VideoSet
from wan.geometry import Geometry
from wan.ledger import RECACHES
from wan.spec import SPECS

TRAINED = LENGTHS["1x"]  # latent frames of a training clip
WINDOW, CHUNK = 9, 3  # latent frames: all that a query attends to, and a chunk
LENGTH = 50  # training lengths of the longest videos
ENDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)  # training lengths at which a video is measured
PROMPTS, SCHEDULES = "prompts/digits_32.txt", "prompts/digits_switch_32.jsonl"
COUNT = 32  # prompts, and schedules
INFER = "configs/infer/digits_few_step.yaml"
TUNING = "configs/train/digits_longlive_stream.yaml"
STUDENT = "runs/table/sid/seed0/export/transformer"  # the best few-step row of scripts/digits_table.py
STAGES = {"before": "not tuned", "after": "tuned"}
HINT = "train them with `python scripts/digits_table.py --rows sid`, or name others with --weights"


@dataclass(frozen=True)
class CachePolicy:
    """Says what a cache of WINDOW latent frames keeps, and where keys are rotated. All policies cost the same."""

    title: str
    sink: int
    rope: str

    def words(self, prefix: str) -> tuple[str, ...]:
        """Returns the key=value words of a recipe whose cache stands at `prefix`."""
        knobs = {"window_frames": WINDOW, "sink_frames": self.sink, "rope": self.rope}
        return tuple(f"{prefix}.{knob}={value}" for knob, value in knobs.items())


CACHES = {
    "no_sink": CachePolicy("no sink", 0, "write"),
    "sink": CachePolicy("sink", 3, "write"),
    "relative": CachePolicy("sink, relative positions", 3, "read"),
}


@dataclass(frozen=True)
class Row:
    """Describes videos with one cache policy (`layout`) and the weights of one stage.

    With a recache they are made of prompt schedules, whose prompts switch.
    """

    layout: str
    stage: str
    recache: str = ""

    @property
    def title(self) -> str:
        """The row's name in a table."""
        return self.recache or CACHES[self.layout].title


ROWS = {f"{layout}_{stage}": Row(layout, stage) for layout in CACHES for stage in STAGES}
ROWS |= {f"switch_{kind}_{stage}": Row("sink", stage, kind) for kind in RECACHES for stage in STAGES}


def make_plan(student: str, updates: int | None, videos: int, length: int, root: Path) -> Plan:
    """Returns the plan of `videos` a row, the first ones of the files, whose prompts are balanced at any number.

    student: the weights to start from. updates: of the generator in each tuning; None: those of the recipe. length: of
    the videos, in training lengths. Errors: ValueError for numbers out of range.
    """
    if updates is not None and updates < 1:
        raise ValueError(f"--updates {updates}: write 1 or more")
    if not 2 <= videos <= COUNT:
        raise ValueError(f"--videos {videos}: write 2 to {COUNT}, the number of prompts and of schedules")
    trainings = {"student": Training(shipped=student, hint=HINT)}
    for name, cache in CACHES.items():
        overrides = cache.words("generation.cache")
        trainings[name] = Training(TUNING, updates, overrides=overrides, start=student, hint=HINT)
    frames = schedule_frames(root / SCHEDULES)
    cases = tuple(make_case(name, videos, length, frames) for name in ROWS)
    return Plan("long", trainings, cases, read)


def make_case(name: str, videos: int, length: int, schedule_frames: int) -> Case:
    """Returns the videos of a row: of `length` training lengths, or, with a recache, of the schedules."""
    row = ROWS[name]
    overrides = [f"generation.chunk={CHUNK}", *CACHES[row.layout].words("generation.cache")]
    if row.recache:
        overrides.append(f"generation.cache.recache={row.recache}")
        words = ("switches", "--scripts", "{prompts}", "--chunk", str(CHUNK))
    else:
        words = ("lengths", "--prompts", "{prompts}", "--ends", *map(str, get_ends(length).values()))
    return Case(
        row=name,
        name=f"videos/{name}",
        folder=f"{name}/{'scripts' if row.recache else f'{length}x'}",
        training=row.layout if row.stage == "after" else "student",
        recipe=INFER,
        videos=VideoSet(SCHEDULES if row.recache else PROMPTS, videos),
        frames=schedule_frames if row.recache else length * TRAINED,
        measures=(Measure(("scripts/evaluate.py", *words, "--videos", "{videos}")),),
        record=name,
        overrides=tuple(overrides),
        labels=vars(row),
    )


def get_ends(length: int) -> dict[int, int]:
    """Returns {training lengths: the pixel frame at which they end} of a video of `length` training lengths.

    Errors: ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"--length {length}: write how many training lengths the videos have, 1 or more")
    geometry = Geometry.of(SPECS["digits"])
    ends = {*(end for end in ENDS if end <= length), length}
    return {end: geometry.pixel_frames(end * TRAINED) for end in sorted(ends)}


def schedule_frames(path: Path) -> int:
    """Returns the latent frames of the longest video of a file of prompt schedules."""
    from utils.data.schedules import read_schedules

    return int(max(line.cues[-1].end.value for line in read_schedules(path)))


def read(case: Case, results: list[dict]) -> tuple[int, dict]:
    """Returns the number of videos and {chunk, switches} or {ends: {training lengths: ...}} of scripts/evaluate.py."""
    rows, count = results[0]["rows"], results[0]["videos"]["videos"]
    if ROWS[case.row].recache:
        return count, {"chunk": CHUNK, "switches": rows}
    return count, {"ends": {str(end): rows[str(frame)] for end, frame in get_ends(case.frames // TRAINED).items()}}

"""The long and the scripted videos of the proof: how a row is generated, measured and recorded; one JSON a row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.jobs import Command, Job
from scripts.experiments.long_plan import CHUNK, INFER, PROMPTS, ROWS, TRAINED, LongRow, ends_until, script_ends
from scripts.experiments.plan import VideoSet
from scripts.experiments.records import read_whole, video_seconds
from scripts.experiments.training import Trainings
from scripts.experiments.videos import VideoTable, matches, sampler_facts
from utils.atomic import atomic_write, write_json

BUDGETED = ("videos", "frames")  # facts of which more than asked is enough


@dataclass(frozen=True)
class LongCase:
    """A row of the proof; `length` in training lengths, 0 for scripts, which tell their own."""

    row: str
    length: int

    @property
    def plan(self) -> LongRow:
        """What the row is made of."""
        return ROWS[self.row]

    @property
    def name(self) -> str:
        """Names the job of this case."""
        return f"videos/{self.row}"

    @property
    def folder(self) -> str:
        """Names the folder of its videos, but for their facts."""
        return f"{self.row}/{f'{self.length}x' if self.length else 'scripts'}"

    @property
    def weights(self) -> tuple[str, int]:
        """The training (name, seed) whose weights it runs."""
        return self.plan.training, 0


class LongTable(VideoTable):
    """Layouts of the cache before and after tuning, along long videos and across prompt switches."""

    marked = (*VideoTable.marked, "cache")

    def __init__(self, trainings: Trainings, length: int):
        """length: of the videos, in training lengths. Errors: ValueError for one below 1, or prompt files not there."""
        super().__init__(trainings, {INFER})
        self.length, self.ends = length, ends_until(length)
        self.frames = {
            "films": length * TRAINED,
            "switches": script_ends(self.budget.videos["switches"].prompts, self.root),
        }

    def check(self, jobs: list[Job]) -> None:
        """Raises ValueError if there is something to do and the student's weights are not there."""
        student = self.trainings.weights("student", 0)
        if jobs and self.trainings.weights_hash("student", 0) is None:
            raise ValueError(
                f"the student's weights are not there ({self.folders.named(student)}); train them with "
                "`python scripts/digits_table.py --rows sid`, or name others with --weights"
            )

    def cases(self, rows: list[str]) -> list[LongCase]:
        """Returns one case a row."""
        return [LongCase(row, 0 if ROWS[row].recache else self.length) for row in rows]

    def requested(self, case: LongCase) -> VideoSet:
        """Returns the videos of a case."""
        return self.budget.videos[case.plan.videos]

    def facts(self, case: LongCase) -> dict:
        """Returns what tells one measurement from another; `weights` is None while there are none."""
        kind, trained = case.plan.videos, self.trainings.facts(*case.weights)
        if case.plan.training == "student":  # wherever they lie
            trained = {"seed": 0}
        return {
            **trained,
            "sampling": self.sampling[INFER],
            "cache": list(case.plan.words),
            "frames": self.frames[kind],
            "prompts": self.prompts[kind],
            "videos": self.requested(case).count,
            "weights": self.trainings.weights_hash(*case.weights),
        }

    def is_recorded(self, case: LongCase) -> bool:
        """True if the record tells of this very case, or of more or longer videos of it."""
        known, now = (read_whole(self.records / f"{case.row}.json") or {}).get("facts"), self.facts(case)
        enough = known is not None and all(known[fact] >= now[fact] for fact in BUDGETED)
        return enough and matches(known, now | {fact: known[fact] for fact in BUDGETED})

    def prompt_file(self, case: LongCase) -> Path:
        """Returns the file with the prompts or scripts; of a smaller budget one with the first ones."""
        videos, folder = self.requested(case), self.video_folder(case)
        if videos.count == PROMPTS.count:
            return Path(videos.prompts)
        return folder.with_name(f"{folder.name}_{videos.count}{Path(videos.prompts).suffix}")

    def write_prompts(self, case: LongCase) -> None:
        """Writes `prompt_file` where it is not the project's."""
        videos, path = self.requested(case), self.prompt_file(case)
        if path != Path(videos.prompts):
            lines = (self.root / videos.prompts).read_text().splitlines(keepends=True)
            atomic_write(self.root / path, "".join(lines[: videos.count]).encode())

    def commands(self, case: LongCase) -> list[Command]:
        """The videos, then their measurement."""
        folder, prompts, words = self.video_folder(case), str(self.prompt_file(case)), [*case.plan.words]
        if case.plan.recache:
            measure = ("switches", "--scripts", prompts, "--chunk", str(CHUNK))
        else:
            words.append(f"num_output_frames={self.frames['films']}")
            measure = ("lengths", "--prompts", prompts, "--ends", *map(str, self.ends.values()))
        videos = self.video_command(case, INFER, prompts, *words, "output.sheet=false")
        return [videos, self.evaluate_command(folder.with_suffix(".json"), *measure, "--videos", str(folder))]

    def record(self, case: LongCase) -> None:
        """Writes the record of a row."""
        folder = self.root / self.video_folder(case)
        result = json.loads(folder.with_suffix(".json").read_text())
        self.check_count(case, result["videos"]["videos"])
        seconds = {"films": video_seconds(folder), "evaluate": result["seconds"]}
        content = {"row": case.row, **vars(case.plan), **self.head(case), "facts": self.facts(case)}
        content |= {"sampler": sampler_facts(self.root / INFER), "seconds": seconds}
        content |= {"commands": [command.text for command in self.commands(case)]}
        if case.plan.recache:
            content |= {"chunk": CHUNK, "switches": result["rows"]}
        else:
            content["ends"] = {str(end): result["rows"][str(frame)] for end, frame in self.ends.items()}
        write_json(self.records / f"{case.row}.json", content)

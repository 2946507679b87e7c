"""Carries a plan out: jobs that train, make videos, measure and record, and whether a case is finished already."""

from __future__ import annotations

from pathlib import Path

from scripts.experiments import records
from scripts.experiments.jobs import Command, Job
from scripts.experiments.plan import Case, Plan
from scripts.experiments.recipes import content_hash, recipe_hash, sampler_facts, short_hash
from scripts.experiments.trainings import Folders, Trainings
from utils.atomic import atomic_write, write_json
from utils.diff import Change, differences
from utils.json_reader import read_json

BATCH = 16  # videos made together
OVERRIDES = "cache"  # the fact that holds a case's overrides; the first rows that had any differed in their caches
FOLDER_FACTS = ("sampling", "prompts", "weights", OVERRIDES)  # videos in one folder share these
AT_LEAST = ("videos", "frames")  # facts of which a record may hold more than is requested


class Experiment:
    """Makes the jobs of a plan. A case is finished when its record holds the same facts; everything else resumes."""

    def __init__(self, plan: Plan, folders: Folders, adopted: dict[str, Path]):
        """adopted: {training: its run folder}. Errors: ValueError for a prompt file that is missing."""
        self.plan, self.folders, self.root = plan, folders, folders.root
        self.trainings = Trainings(folders, plan, adopted)
        self.lines: dict[str, list[str]] = {}
        for name in {case.videos.prompts for case in plan.cases}:
            if not (self.root / name).is_file():
                raise ValueError(f"{name} is missing; it comes with the project")
            self.lines[name] = (self.root / name).read_text().splitlines(keepends=True)
        self.prompts = {name: content_hash(self.root / name) for name in self.lines}
        self.sampling = {recipe: recipe_hash(self.root / recipe) for recipe in {case.recipe for case in plan.cases}}

    def cases(self, rows: list[str]) -> list[Case]:
        """Returns the cases of some rows, row by row."""
        return [case for row in rows for case in self.plan.cases if case.row == row]

    def pending(self, rows: list[str], again: bool = False) -> list[Case]:
        """Returns the cases that are not recorded yet; `again`: all of them."""
        return [case for case in self.cases(rows) if again or not self.is_recorded(case)]

    def check(self, cases: list[Case]) -> None:
        """Raises ValueError for given weights that are missing, before any job is begun."""
        for case in cases:
            self.trainings.check(case.training)

    def jobs(self, cases: list[Case]) -> list[Job]:
        """Returns what these cases take, each job after those it needs."""
        jobs: dict[str, Job] = {}
        for case in cases:
            needs = self.trainings.add(case.training, case.seed, jobs)
            jobs[case.name] = self.measuring(case, needs)
        return list(jobs.values())

    def measuring(self, case: Case, needs: tuple[str, ...]) -> Job:
        """Returns the job that makes, measures and records the videos of a case."""
        return Job(
            case.name,
            lambda: self.commands(case),
            begin=lambda: self.write_prompts(case),
            finish=lambda: self.record(case),
            needs=needs,
            note=lambda: f"{_count_videos(self.root / self.video_folder(case))}/{case.videos.count}",
        )

    def facts(self, case: Case) -> dict:
        """Returns the facts that identify a measurement; `weights` is None while there are none."""
        return {
            **self.trainings.facts(case.training, case.seed),
            "sampling": self.sampling[case.recipe],
            **({OVERRIDES: list(case.overrides)} if case.overrides else {}),
            "frames": case.frames,
            "prompts": self.prompts[case.videos.prompts],
            "videos": case.videos.count,
            "weights": self.trainings.weights_hash(case.training, case.seed),
        }

    def is_recorded(self, case: Case) -> bool:
        """True if the record holds this very case, or more or longer videos of it.

        Weights that are missing here (a fresh clone) are not compared.
        """
        record, now = records.read_record(self.record_path(case)) or {}, self.facts(case)
        known = (record.get(case.part, {}) if case.part else record).get("facts")
        return known is not None and all(_is_enough(change) for change in differences(known, now))

    def record_path(self, case: Case) -> Path:
        """Returns the file of a case's record."""
        return self.root / self.folders.records / f"{case.record}.json"

    def video_folder(self, case: Case) -> Path:
        """Returns the folder of the videos; a hash of facts ends its name, so videos of other weights never mix."""
        facts = self.facts(case)
        return self.folders.videos / f"{case.folder}_{short_hash({k: facts[k] for k in FOLDER_FACTS if k in facts})}"

    def commands(self, case: Case) -> list[Command]:
        """Returns the calls that make the videos, second ones of some prompts too, then those that measure them."""
        prompts, second = self.prompt_file(case), self.second_file(case)
        videos = [self.video_command(case, prompts, case.sheet)]
        if case.videos.second:
            videos.append(self.video_command(case, second, False, "num_samples=2"))
        paths = {"videos": self.video_folder(case), "prompts": prompts}
        measures = [
            Command((*(word.format(**paths) for word in measure.words), "--output", str(path)), self.root / path)
            for measure, path in zip(case.measures, self.results(case), strict=True)
        ]
        return [*videos, *measures]

    def video_command(self, case: Case, prompts: Path, sheet: bool, *more: str) -> Command:
        """Returns one call of inference.py; finished videos are skipped."""
        weights = self.folders.named(self.trainings.weights(case.training, case.seed))
        words = ["--config_path", case.recipe, "--checkpoint_path", weights, "--data_path", str(prompts)]
        words += ["--output_folder", str(self.video_folder(case)), "--seed", str(case.seed), *case.overrides]
        words += [] if case.videos.scheduled else [f"num_output_frames={case.frames}"]
        return Command(("inference.py", *words, f"output.sheet={str(sheet).lower()}", *more, f"batch={BATCH}"))

    def results(self, case: Case) -> list[Path]:
        """Returns the JSON files that the measures of a case write."""
        folder = self.video_folder(case)
        return [folder.with_name(f"{folder.name}{measure.suffix}.json") for measure in case.measures]

    def is_shortened(self, case: Case) -> bool:
        """True if the prompt file holds more lines than the case has videos."""
        return case.videos.count - case.videos.second < len(self.lines[case.videos.prompts])

    def prompt_file(self, case: Case) -> Path:
        """Returns the file of the prompts; one with the first lines where not all are used."""
        path, folder = Path(case.videos.prompts), self.video_folder(case)
        return folder.with_name(f"{folder.name}_{case.videos.count}{path.suffix}") if self.is_shortened(case) else path

    def second_file(self, case: Case) -> Path:
        """Returns the prompts that get a second video. Blank lines keep the numbers, hence the noise, of the others."""
        return self.video_folder(case).with_suffix(".txt")

    def write_prompts(self, case: Case) -> None:
        """Writes the prompt files that are not the project's; second videos: evenly spread lines."""
        videos, lines = case.videos, self.lines[case.videos.prompts]
        if self.is_shortened(case):
            text = "".join(lines[: videos.count - videos.second])
            atomic_write(self.root / self.prompt_file(case), text.encode())
        if videos.second:
            chosen = {k * len(lines) // videos.second for k in range(videos.second)}
            text = "".join(line if i in chosen else "\n" for i, line in enumerate(lines))
            atomic_write(self.root / self.second_file(case), text.encode())

    def record(self, case: Case) -> None:
        """Writes the measurements of a case into its record. Errors: ValueError if videos were left out."""
        folder = self.root / self.video_folder(case)
        results = [read_json(self.root / path) for path in self.results(case)]
        count, fields = self.plan.read(case, results)
        if count != case.videos.count:
            raise ValueError(f"{folder} holds {count} videos, {case.videos.count} are requested")
        weights = self.trainings.weights(case.training, case.seed)
        sampler = sampler_facts(self.root / case.recipe, weights, case.overrides)
        content = {"facts": self.facts(case), "sampler": sampler, **fields}
        content["seconds"] = {"films": records.video_seconds(folder), "evaluate": results[0]["seconds"]}
        content["commands"] = [command.text for command in self.commands(case)]
        head = {"row": case.row, **case.labels, "budget": self.plan.budget}
        head["training"] = self.trainings.training_record(case.training, case.seed)
        head["hardware"] = records.hardware()
        path = self.record_path(case)
        if case.part:
            parts = [other.part for other in self.plan.cases if other.record == case.record]
            content = records.merge_part(records.read_record(path), case.part, content, parts)
        write_json(path, head | content)


def _count_videos(folder: Path) -> int:
    """Returns how many videos are finished."""
    return sum(not path.name.endswith(".partial.mp4") for path in folder.glob("*.mp4"))


def _is_enough(change: Change) -> bool:
    """True if a record serves in spite of this difference from the requested facts (see `Experiment.is_recorded`)."""
    if change.path in AT_LEAST:
        return change.in_both and change.old > change.new
    return change.in_both and change.new is None and change.path in ("weights", "start")

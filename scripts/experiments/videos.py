"""The videos of the digits tables: how a case is generated, measured and recorded, when it counts as finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.jobs import Command, Job
from scripts.experiments.plan import CURVE_WINDOWS, LENGTHS, ROWS, VideoSet, content_hash, mark, recipe_hash
from scripts.experiments.records import hardware, measured, read_record, video_seconds, write_length
from scripts.experiments.training import Trainings
from utils.atomic import atomic_write

BATCH = 16  # videos made together


class VideoTable:
    """Makes the jobs of some rows: videos of a prompt file, measured and recorded, unless a record tells of them.

    Case: has `name`, `folder` (of its videos) and `weights`. What else a case is, how it is measured and what is
    recorded, is said by the tables below (`Table`) and of long videos (`scripts/experiments/long_videos.py`).
    """

    marked = ("sampling", "prompts", "weights")  # facts that videos must share to lie in one folder

    def __init__(self, trainings: Trainings, recipes: set[str]):
        """recipes: of inference. Errors: ValueError for a prompt file that is not there."""
        self.trainings, self.budget, self.folders = trainings, trainings.budget, trainings.folders
        self.root, self.records = self.folders.root, self.folders.root / self.folders.records
        for videos in self.budget.videos.values():
            if not (self.root / videos.prompts).is_file():
                raise ValueError(f"{videos.prompts} is missing; it comes with the project")
        self.prompts = {name: content_hash(self.root / videos.prompts) for name, videos in self.budget.videos.items()}
        self.sampling = {recipe: recipe_hash(self.root / recipe) for recipe in recipes}

    def cases(self, rows: list[str]) -> list:
        """Returns what these rows consist of."""
        raise NotImplementedError

    def requested(self, case) -> VideoSet:
        """Returns the videos of a case."""
        raise NotImplementedError

    def facts(self, case) -> dict:
        """Returns what tells one measurement from another; `weights` is None while there are none."""
        raise NotImplementedError

    def is_recorded(self, case) -> bool:
        """True if the record tells of this very case. Weights that are not at hand (a fresh clone) do not count."""
        raise NotImplementedError

    def commands(self, case) -> list[Command]:
        """Returns what videos and measures a case."""
        raise NotImplementedError

    def record(self, case) -> None:
        """Writes the measurement of a case into its record."""
        raise NotImplementedError

    def write_prompts(self, case) -> None:
        """Writes the prompt files that the commands read and that are not the project's; before the first of them."""

    def check(self, jobs: list[Job]) -> None:
        """Raises ValueError for what these jobs lack, before the first of them is begun."""

    def jobs(self, rows: list[str], again: bool = False) -> list[Job]:
        """Returns what is left to do, each job after those it needs. again: measure what is recorded, too."""
        jobs: dict[str, Job] = {}
        for case in self.cases(rows):
            if again or not self.is_recorded(case):
                needs = self.trainings.add(*case.weights, jobs)
                jobs[case.name] = self.measuring(case, needs)
        return list(jobs.values())

    def measuring(self, case, needs: tuple[str, ...]) -> Job:
        """Returns the job that makes and measures the videos of a case."""
        return Job(
            case.name,
            lambda: self.commands(case),
            begin=lambda: self.write_prompts(case),
            finish=lambda: self.record(case),
            needs=needs,
            note=lambda: f"{_count(self.root / self.video_folder(case))}/{self.requested(case).count}",
        )

    def video_folder(self, case) -> Path:
        """Returns the folder of the videos; facts are part of its name, so videos of other weights never mix."""
        facts = self.facts(case)
        return self.folders.videos / f"{case.folder}_{mark({k: facts[k] for k in self.marked})}"

    def video_command(self, case, recipe: str, prompts, *more: str) -> Command:
        """One call of inference.py; finished videos are skipped."""
        weights = self.folders.named(self.trainings.weights(*case.weights))
        words = ["--config_path", recipe, "--checkpoint_path", weights, "--data_path", str(prompts)]
        words += ["--output_folder", str(self.video_folder(case)), "--seed", str(case.weights[1])]
        return Command(("inference.py", *words, *more, f"batch={BATCH}"))

    def evaluate_command(self, output: Path, *words: str) -> Command:
        """One call of scripts/evaluate.py; a gate that fails is a result."""
        return Command(("scripts/evaluate.py", *words, "--output", str(output)), self.root / output)

    def check_count(self, case, found: int) -> None:
        """Raises ValueError if a measurement saw another number of videos than were asked."""
        folder, count = self.video_folder(case), self.requested(case).count
        if found != count:
            raise ValueError(f"{folder} holds {found} videos, {count} are asked")

    def head(self, case) -> dict:
        """Returns what a record says of the whole row: budget, training, hardware."""
        return {
            "budget": self.budget.name,
            "training": self.trainings.training_record(*case.weights),
            "hardware": hardware(),
        }


def matches(known: dict | None, now: dict) -> bool:
    """True if recorded facts are those of now; weights, and what a training started from, may be out of hand now."""
    if known is None or set(known) != set(now):
        return False
    unknown = [fact for fact in ("weights", "start") if fact in now and now[fact] is None]
    return all(known[fact] == now[fact] for fact in now if fact not in unknown)


@dataclass(frozen=True)
class Case:
    """One row of the digits table, one seed, one length."""

    row: str
    seed: int
    length: str

    @property
    def name(self) -> str:
        """Names the job of this case."""
        return f"{self.row}/seed{self.seed}/{self.length}"

    @property
    def folder(self) -> str:
        """Names the folder of its videos, but for their facts."""
        return self.name

    @property
    def weights(self) -> tuple[str, int]:
        """The training (name, seed) whose weights it runs."""
        return ROWS[self.row].training, self.seed


class Table(VideoTable):
    """The digits table: every objective at one and ten training lengths."""

    def __init__(self, trainings: Trainings):
        """Errors: ValueError for a prompt file that is not there."""
        super().__init__(trainings, {row.infer for row in ROWS.values()})

    def cases(self, rows: list[str]) -> list[Case]:
        """Returns what these rows consist of, seed by seed."""
        seeds = range(self.budget.seeds)
        return [Case(row, seed, length) for row in rows for seed in seeds for length in ROWS[row].lengths]

    def requested(self, case: Case) -> VideoSet:
        """Returns the videos of a case."""
        return self.budget.videos[case.length]

    def facts(self, case: Case) -> dict:
        """Returns what tells one measurement from another; `weights` is None while there are none."""
        return {
            **self.trainings.facts(*case.weights),
            "sampling": self.sampling[ROWS[case.row].infer],
            "frames": LENGTHS[case.length],
            "prompts": self.prompts[case.length],
            "videos": self.requested(case).count,
            "weights": self.trainings.weights_hash(*case.weights),
        }

    def is_recorded(self, case: Case) -> bool:
        """True if the record tells of this very case. Weights that are not at hand (a fresh clone) do not count."""
        known = (read_record(self.records, case.row, case.seed) or {}).get(case.length, {}).get("facts")
        return matches(known, self.facts(case))

    def commands(self, case: Case) -> list[Command]:
        """Videos of every prompt, second ones of some, then the measurements."""
        videos, folder = self.requested(case), self.video_folder(case)
        commands = [self.video(case, videos.prompts)]
        if videos.second:
            commands.append(self.video(case, self.second_file(case), "num_samples=2"))
        commands.append(self.measure(case, folder.with_suffix(".json")))
        if windows := CURVE_WINDOWS.get(case.length):
            output = folder.with_name(f"{folder.name}_curve.json")
            commands.append(self.measure(case, output, "--windows", str(windows)))
        return commands

    def video(self, case: Case, prompts, *more: str) -> Command:
        """Videos of a prompt file."""
        sheet = "true" if case.length == "1x" and not more else "false"  # long videos make an unreadable sheet
        words = (f"num_output_frames={LENGTHS[case.length]}", f"output.sheet={sheet}", *more)
        return self.video_command(case, ROWS[case.row].infer, prompts, *words)

    def measure(self, case: Case, output: Path, *more: str) -> Command:
        """Measurements of all videos."""
        words = ("--videos", str(self.video_folder(case)), "--prompts", self.requested(case).prompts, *more)
        return self.evaluate_command(output, "digits", *words)

    def second_file(self, case: Case) -> Path:
        """Returns the prompts that get a second video. Blank lines keep the numbers, hence the noise, of the others."""
        return self.video_folder(case).with_suffix(".txt")

    def write_prompts(self, case: Case) -> None:
        """Writes `second_file`: evenly spread lines of the prompt file."""
        videos = self.requested(case)
        if videos.second:
            lines = (self.root / videos.prompts).read_text().splitlines()
            chosen = {k * len(lines) // videos.second for k in range(videos.second)}
            text = "".join(f"{line if i in chosen else ''}\n" for i, line in enumerate(lines))
            atomic_write(self.root / self.second_file(case), text.encode())

    def record(self, case: Case) -> None:
        """Writes the measurement of a case into the record of its row and seed."""
        folder = self.root / self.video_folder(case)
        result = measured(folder.with_suffix(".json"))
        self.check_count(case, result["videos"])
        seconds = {"films": video_seconds(folder), "evaluate": result.pop("seconds")}
        content = {"facts": self.facts(case), "sampler": sampler_facts(self.root / ROWS[case.row].infer), **result}
        content |= {"seconds": seconds, "commands": [c.text for c in self.commands(case)]}
        if case.length in CURVE_WINDOWS:
            drift = measured(folder.with_name(f"{folder.name}_curve.json"))["drift"]
            content["curve"] = {metric: values["windows"] for metric, values in drift.items()}
        write_length(self.records, case.row, case.seed, case.length, self.head(case), content)


def _count(folder: Path) -> int:
    """Returns how many videos are finished."""
    return sum(not path.name.endswith(".partial.mp4") for path in folder.glob("*.mp4"))


def sampler_facts(recipe: Path) -> dict:
    """Returns {steps, guidance}: how many steps a chunk takes, and the scale of the guidance."""
    from pipeline.config import load_recipe

    sampler = vars(load_recipe(recipe)[0].sampler)
    return {"steps": sampler.get("num_steps") or len(sampler["steps"]), "guidance": sampler["guidance"]}

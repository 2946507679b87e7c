"""The films of the digits table: how a row with a seed is made, measured and recorded, when it counts as finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.digits_jobs import Command, Job
from scripts.digits_plan import CURVE_WINDOWS, LENGTHS, ROWS, file_hash, mark, recipe_hash
from scripts.digits_records import WEIGHTS, film_seconds, hardware, measured, read_record, write_length
from scripts.digits_training import Trainings
from utils.atomic import atomic_write

BATCH = 16  # films made together


@dataclass(frozen=True)
class Case:
    """One row, one seed, one length."""

    row: str
    seed: int
    length: str

    @property
    def name(self) -> str:
        """Names the job of this case."""
        return f"{self.row}/seed{self.seed}/{self.length}"

    @property
    def weights(self) -> tuple[str, int]:
        """The training (name, seed) whose weights it runs."""
        return ROWS[self.row].training, self.seed


class Table:
    """Makes the jobs of some rows."""

    def __init__(self, trainings: Trainings):
        """Errors: ValueError for a prompt file that is not there."""
        self.trainings, self.budget, self.folders = trainings, trainings.budget, trainings.folders
        self.root, self.records = self.folders.root, self.folders.root / self.folders.records
        for films in self.budget.films.values():
            if not (self.root / films.prompts).is_file():
                raise ValueError(f"{films.prompts} is missing; it comes with the project")
        self.prompts = {name: file_hash(self.root / films.prompts) for name, films in self.budget.films.items()}
        self.sampling = {recipe: recipe_hash(self.root / recipe) for recipe in {row.infer for row in ROWS.values()}}

    def cases(self, rows: list[str]) -> list[Case]:
        """Returns what these rows consist of, seed by seed."""
        seeds = range(self.budget.seeds)
        return [Case(row, seed, length) for row in rows for seed in seeds for length in ROWS[row].lengths]

    def jobs(self, rows: list[str], again: bool = False) -> list[Job]:
        """Returns what is left to do, each job after those it needs. again: measure what is recorded, too."""
        jobs: dict[str, Job] = {}
        for case in self.cases(rows):
            if again or not self.is_recorded(case):
                needs = self.trainings.add(*case.weights, jobs)
                jobs[case.name] = self.measuring(case, needs)
        return list(jobs.values())

    def facts(self, case: Case) -> dict:
        """Returns what tells one measurement from another; `weights` is None while there are none."""
        file = self.trainings.weights(*case.weights) / Path(WEIGHTS[0]).name
        return {
            **self.trainings.facts(*case.weights),
            "sampling": self.sampling[ROWS[case.row].infer],
            "frames": LENGTHS[case.length],
            "prompts": self.prompts[case.length],
            "videos": self.budget.films[case.length].count,
            "weights": file_hash(file) if file.exists() else None,
        }

    def is_recorded(self, case: Case) -> bool:
        """True if the record tells of this very case. Weights that are not at hand (a fresh clone) do not count."""
        known = (read_record(self.records, case.row, case.seed) or {}).get(case.length, {}).get("facts")
        now = self.facts(case)
        if known is None or now["weights"] not in (None, known["weights"]):
            return False
        return {**known, "weights": None} == {**now, "weights": None}

    def film_folder(self, case: Case) -> Path:
        """Returns the folder of the films; facts are part of its name, so films of other weights never mix."""
        facts = self.facts(case)
        own = mark({k: facts[k] for k in ("sampling", "prompts", "weights")})
        return self.folders.films / case.row / f"seed{case.seed}" / f"{case.length}_{own}"

    def measuring(self, case: Case, needs: tuple[str, ...]) -> Job:
        """Returns the job that makes and measures the films of a case."""
        return Job(
            case.name,
            lambda: self.measure_commands(case),
            begin=lambda: self.write_second(case),
            finish=lambda: self.record(case),
            needs=needs,
            note=lambda: f"{_count(self.root / self.film_folder(case))}/{self.budget.films[case.length].count}",
        )

    def measure_commands(self, case: Case) -> list[Command]:
        """Films of every prompt, second ones of some, then the measurements."""
        films, folder = self.budget.films[case.length], self.film_folder(case)
        commands = [self.film_command(case, films.prompts)]
        if films.second:
            commands.append(self.film_command(case, self.second_file(case), "num_samples=2"))
        commands.append(self.evaluate_command(case, folder.with_suffix(".json")))
        if windows := CURVE_WINDOWS.get(case.length):
            output = folder.with_name(f"{folder.name}_curve.json")
            commands.append(self.evaluate_command(case, output, "--windows", str(windows)))
        return commands

    def film_command(self, case: Case, prompts, *more: str) -> Command:
        """One call of inference.py; finished films are skipped."""
        weights = self.folders.named(self.trainings.weights(*case.weights))
        words = ["--config_path", ROWS[case.row].infer, "--checkpoint_path", weights, "--data_path", str(prompts)]
        words += ["--output_folder", str(self.film_folder(case)), "--seed", str(case.seed)]
        sheet = "true" if case.length == "1x" and not more else "false"  # long films make an unreadable sheet
        words += [f"num_output_frames={LENGTHS[case.length]}", f"batch={BATCH}", f"output.sheet={sheet}", *more]
        return Command(("inference.py", *words))

    def evaluate_command(self, case: Case, output: Path, *more: str) -> Command:
        """One call of scripts/evaluate.py; a gate that fails is a result."""
        words = ("--videos", str(self.film_folder(case)), "--prompts", self.budget.films[case.length].prompts, *more)
        return Command(("scripts/evaluate.py", "digits", *words, "--output", str(output)), self.root / output)

    def second_file(self, case: Case) -> Path:
        """Returns the prompts that get a second film. Blank lines keep the numbers, hence the noise, of the others."""
        return self.film_folder(case).with_suffix(".txt")

    def write_second(self, case: Case) -> None:
        """Writes `second_file`: evenly spread lines of the prompt file."""
        films = self.budget.films[case.length]
        if films.second:
            lines = (self.root / films.prompts).read_text().splitlines()
            chosen = {k * len(lines) // films.second for k in range(films.second)}
            text = "".join(f"{line if i in chosen else ''}\n" for i, line in enumerate(lines))
            atomic_write(self.root / self.second_file(case), text.encode())

    def record(self, case: Case) -> None:
        """Writes the measurement of a case into the record of its row and seed."""
        folder = self.root / self.film_folder(case)
        result, commands = measured(folder.with_suffix(".json")), self.measure_commands(case)
        if result["videos"] != self.budget.films[case.length].count:
            raise ValueError(
                f"{folder} holds {result['videos']} films, {self.budget.films[case.length].count} are asked"
            )
        seconds = {"films": film_seconds(folder), "evaluate": result.pop("seconds")}
        content = {"facts": self.facts(case), "sampler": _sampler(self.root / ROWS[case.row].infer), **result}
        content |= {"seconds": seconds, "commands": [c.text for c in commands]}
        if case.length in CURVE_WINDOWS:
            drift = measured(folder.with_name(f"{folder.name}_curve.json"))["drift"]
            content["curve"] = {metric: values["windows"] for metric, values in drift.items()}
        head = {"budget": self.budget.name, "training": self.trainings.story(*case.weights), "hardware": hardware()}
        write_length(self.records, case.row, case.seed, case.length, head, content)


def _count(folder: Path) -> int:
    """Returns how many films are finished."""
    return sum(not path.name.endswith(".partial.mp4") for path in folder.glob("*.mp4"))


def _sampler(recipe: Path) -> dict:
    """Returns {steps, guidance}: how many steps a chunk takes, and the scale of the guidance."""
    from pipeline.config import load_recipe

    sampler = vars(load_recipe(recipe)[0].sampler)
    return {"steps": sampler.get("num_steps") or len(sampler["steps"]), "guidance": sampler["guidance"]}

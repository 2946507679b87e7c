"""Trains the weights behind an experiment's videos: where runs live, what they need, when they are finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.experiments import records
from scripts.experiments.jobs import Command, Job
from scripts.experiments.plan import Plan
from scripts.experiments.recipes import content_hash, get_steps, get_update_ratio, recipe_hash
from scripts.experiments.runs import WEIGHTS, read_curves, read_metrics, weights_file, why_unfinished
from utils.atomic import write_json
from utils.diff import differences
from utils.json_reader import read_json

STAMP = "table.json"  # in a run folder: what was begun there


@dataclass(frozen=True)
class Folders:
    """Holds the folders of an experiment. root: the project; the others are relative to it."""

    root: Path
    runs: Path
    videos: Path
    records: Path

    def named(self, path: Path) -> str:
        """Returns a path as commands and records name it: from the root where it lies there."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


class Trainings:
    """Trains the weights of a plan, by name and seed. adopted: {name: run folder} that serves as seed 0; only read."""

    def __init__(self, folders: Folders, plan: Plan, adopted: dict[str, Path]):
        """Reads the recipes once: one that is edited while an experiment runs belongs to the next run."""
        self.folders, self.root, self.adopted = folders, folders.root, adopted
        self.plan, self.data = plan.trainings, plan.data
        own = {name: training for name, training in self.plan.items() if not training.shipped}
        self.steps = {name: get_steps(training, self.root) for name, training in own.items()}
        self.updates = {name: self.steps[name] // get_update_ratio(own[name], self.root) for name in own}
        self.hashes = {name: recipe_hash(self.root / training.recipe) for name, training in own.items()}

    def add(self, name: str, seed: int, jobs: dict[str, Job]) -> tuple[str, ...]:
        """Adds the training of these weights, and its data, if they are not there; returns what to wait for."""
        training, job = self.plan[name], f"train/{name}/seed{seed}"
        if training.shipped or job in jobs:
            return (job,) if job in jobs else ()
        run, steps = self.run(name, seed), self.steps[name]
        if self.is_adopted(name, seed):
            if why_unfinished(run, steps):
                jobs[job] = Job(job, tuple, finish=lambda: _check_trained(run, steps))
            return (job,) if job in jobs else ()
        if not why_unfinished(run, steps) and not self.difference(name, seed):
            return ()
        needs = tuple(f"data/{need}" for need in training.needs if self.add_data(need, jobs))
        needs += self.add(training.after, seed, jobs) if training.after else ()
        jobs[job] = Job(
            job,
            lambda: [self.train_command(name, seed)],
            begin=lambda: self.stamp(name, seed),
            finish=lambda: _check_trained(run, steps),
            needs=needs,
            note=lambda: _reached(run, steps),
        )
        return (job,)

    def add_data(self, need: str, jobs: dict[str, Job]) -> bool:
        """Adds the job that makes a data set, unless every shard is there; True if there is one to wait for."""
        data, job = self.data[need], f"data/{need}"
        if len(list((self.root / data.folder).glob("shard_*.safetensors"))) < data.shards:
            jobs.setdefault(job, Job(job, lambda: [Command(data.words)]))
        return job in jobs

    def train_command(self, name: str, seed: int) -> Command:
        """Returns one call of train.py; it goes on from its last checkpoint by itself."""
        training, run = self.plan[name], self.folders.named(self.run(name, seed))
        words = ["--config_path", training.recipe, "--logdir", run, f"steps={self.steps[name]}", f"seed={seed}"]
        if start := self.start(name, seed):
            words.append(f"trainer.generator.weights={self.folders.named(start)}")
        return Command(("train.py", *words, *training.overrides))

    def start(self, name: str, seed: int) -> Path | None:
        """Returns the weights that the generator starts from, or None for those of the recipe."""
        training = self.plan[name]
        if training.after:
            return self.weights(training.after, seed)
        return self.root / training.start if training.start else None

    def is_adopted(self, name: str, seed: int) -> bool:
        """True if a run folder was named to serve as this training."""
        return seed == 0 and name in self.adopted

    def run(self, name: str, seed: int) -> Path:
        """Returns the run folder of a training."""
        if self.is_adopted(name, seed):
            return self.adopted[name]
        return self.root / self.folders.runs / name / f"seed{seed}"

    def weights(self, name: str, seed: int) -> Path:
        """Returns the folder of the trained transformer, or the file that was given."""
        shipped = self.plan[name].shipped
        return self.root / shipped if shipped else (self.run(name, seed) / WEIGHTS[0]).parent

    def weights_hash(self, name: str, seed: int) -> str | None:
        """Returns the hash of the weights, or None while there are none."""
        return hash_if_there(self.weights(name, seed))

    def facts(self, name: str, seed: int) -> dict:
        """Returns the facts that identify a training; `start` is None while those weights are missing."""
        training = self.plan[name]
        if training.shipped:
            return {"shipped": training.shipped, "seed": seed} if training.record else {"seed": seed}
        facts = {"recipe": training.recipe, "hash": self.hashes[name], "steps": self.steps[name], "seed": seed}
        if training.overrides:
            facts["overrides"] = list(training.overrides)
        if start := self.start(name, seed):
            facts["start"] = hash_if_there(start)
        return facts

    def check(self, name: str) -> None:
        """Raises ValueError if weights that this training is given are missing."""
        training = self.plan[name]
        given = training.shipped or training.start
        if given and hash_if_there(self.root / given) is None:
            hint = f"; {training.hint}" if training.hint else ""
            raise ValueError(f"the weights of {name} are missing ({self.folders.named(self.root / given)}){hint}")

    def difference(self, name: str, seed: int) -> list[str]:
        """Returns the facts in which a run folder of ours was begun otherwise."""
        path = self.run(name, seed) / STAMP
        before = read_json(path) if path.exists() else {}
        changes = [c for c in differences(before, self.facts(name, seed)) if c.in_both and c.new is not None]
        return list(dict.fromkeys(change.path.partition(".")[0] for change in changes))

    def stamp(self, name: str, seed: int) -> None:
        """Writes into the run folder what is begun there. Errors: ValueError if it was begun as something else."""
        run = self.run(name, seed)
        if not (run / STAMP).exists() and (run / "metrics.jsonl").exists():
            raise ValueError(f"{run} holds a training that this script did not begin; move it away or give --runs_from")
        if other := self.difference(name, seed):
            raise ValueError(f"{run} was begun with other {', '.join(other)}; move it away or give another --runs")
        write_json(run / STAMP, self.facts(name, seed))

    def training_record(self, name: str, seed: int) -> dict:
        """Returns how the weights came to be: facts, updates, minutes, hardware, command, curves."""
        training, run = self.plan[name], self.run(name, seed)
        if training.shipped and not training.record:
            return {"weights": training.shipped}
        if training.shipped:
            saved_record = read_json(self.root / f"docs/results/{training.record}.json")
            kept = {fact: saved_record[fact] for fact in ("recipe", "steps", "minutes", "hardware")}
            return {"shipped": training.shipped, "updates": saved_record["steps"], **kept}
        own = {**self.facts(name, seed), "updates": self.updates[name]}
        own |= {"run": self.folders.named(run), "hardware": records.hardware()["name"]}
        if self.is_adopted(name, seed):
            own["note"] = "the run folder was given on the command line; the command is the table's own"
        return own | {"command": self.train_command(name, seed).text, **read_curves(run)}


def hash_if_there(weights: Path) -> str | None:
    """Returns the hash of a transformer's weights (folder or file), or None if they are missing."""
    file = weights_file(weights)
    return content_hash(file) if file.exists() else None


def _check_trained(run: Path, steps: int) -> None:
    """Raises ValueError for a training that ended before its last step (a signal, a full disk)."""
    if reason := why_unfinished(run, steps):
        raise ValueError(f"{reason}; start again to go on")


def _reached(run: Path, steps: int) -> str:
    """Returns how far a training is, for the progress bar."""
    rows = read_metrics(run)
    return f"{rows[-1]['step'] if rows else 0}/{steps}"

"""Trains the talking digits and measures whether they follow the sound: teacher, same-step training, four-step student.

    python scripts/digits_avatar.py                          # everything, one process per core; run again to go on
    python scripts/digits_avatar.py --rows sft,student --jobs 1
    python scripts/digits_avatar.py --dry_run

Trainings live in runs/avatar_*, videos in outputs/digits_avatar, records in docs/results/avatar. What is finished is
kept: a training goes on from its checkpoint, a list of videos with the next one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import talking  # noqa: E402
from scripts.experiments.jobs import Command, Job, run_jobs  # noqa: E402
from scripts.experiments.plan import ROOT, choose_rows  # noqa: E402
from scripts.experiments.recipes import content_hash, recipe_hash  # noqa: E402
from scripts.experiments.runs import WEIGHTS, read_curves, why_unfinished  # noqa: E402
from utils import log  # noqa: E402
from utils.config.layer import read_recipe  # noqa: E402
from utils.door import door  # noqa: E402

LATENTS, SHARDS = "runs/speaking_latents", 24
RUNS, VIDEOS, RECORDS = Path("runs"), Path("outputs/digits_avatar"), Path("docs/results/avatar")


@door("digits_avatar.py", "run again to go on")
def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if all rows are there, 1 if a job failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("digits_avatar.py", description=__doc__, formatter_class=form)
    known = ",".join(["real", *talking.MODELS])
    parser.add_argument("--rows", default="", help=f"some of {known} (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, a thread each")
    parser.add_argument("--dry_run", action="store_true", help="print jobs and commands, run nothing")
    parser.add_argument("--record", nargs=2, metavar=("ROW", "SOUND"), help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    log.setup()
    if flags.record:
        return record(*flags.record)
    if flags.jobs < 1:
        raise ValueError(f"--jobs is {flags.jobs}; write 1 or more")
    jobs = make_jobs(choose_rows(flags.rows, ["real", *talking.MODELS]))
    if flags.dry_run:
        for job in jobs:
            print(job.name + (f"  (after {', '.join(job.needs)})" if job.needs else ""))
            for command in job.commands():
                print(f"  {command.text}")
        return 0
    ended = run_jobs(jobs, flags.jobs, ROOT, ROOT / RUNS / "avatar_logs")
    from scripts import tables
    from scripts.experiments import talking_results

    talking_results.draw(ROOT)
    tables.main([])
    failed = {name: reason for name, reason in ended.items() if reason}
    for name, reason in failed.items():
        print(f"failed: {name}: {reason.splitlines()[0]}")
    return int(bool(failed))


def make_jobs(rows: list[str]) -> list[Job]:
    """Returns what these rows take, each job after those it needs."""
    jobs: dict[str, Job] = {}
    for row in rows:
        if row == "real":
            jobs["real"] = Job("real", lambda: [Command(("scripts/digits_avatar.py", "--record", "real", "1x"))])
            continue
        needs = add_training(row, jobs)
        for sound in talking.MODELS[row].sounds:
            name = f"{row}/{sound}"
            jobs[name] = Job(name, lambda row=row, sound=sound: commands(row, sound), needs=needs)
    return list(jobs.values())


def add_training(row: str, jobs: dict[str, Job]) -> tuple[str, ...]:
    """Adds the training of a model, and what it starts from, unless it is finished; returns what to wait for."""
    model, job = talking.MODELS[row], f"train/{row}"
    if job in jobs:
        return (job,)
    if not why_unfinished(ROOT / run(row), steps(row)):
        return ()
    before = tuple(name for need in model.needs for name in add_training(need, jobs))
    if len(list((ROOT / LATENTS).glob("shard_*.safetensors"))) < SHARDS:
        jobs.setdefault("latents", Job("latents", encode))
        before = (*before, "latents")
    words = ("train.py", "--config_path", talking.RECIPES.format(model.train), "--logdir", str(run(row)))
    jobs[job] = Job(job, lambda: [Command(words)], needs=before, finish=lambda: check_trained(row))
    return (job,)


def encode() -> list[Command]:
    """Returns the call that encodes the clips of all trainings."""
    words = ("scripts/encode_latents.py", "speaking_digits", "--vae", "assets/digits/vae", "--output", LATENTS)
    return [Command((*words, "--clips", str(32 * SHARDS)))]


def commands(row: str, sound: str) -> list[Command]:
    """Returns the calls that make and measure the videos of one model on one kind of sound."""
    inputs = talking.write_inputs(ROOT / VIDEOS / "inputs", sound).relative_to(ROOT)
    words = ["--config_path", talking.INFER, "--checkpoint_path", str(run(row) / "export/transformer")]
    words += ["--data_path", str(inputs), "--output_folder", str(folder(row, sound)), *talking.MODELS[row].words]
    return [Command(("inference.py", *words)), Command(("scripts/digits_avatar.py", "--record", row, sound))]


def record(row: str, sound: str) -> int:
    """Measures what was made; returns 0."""
    if row == "real":
        talking.record_real(ROOT / RECORDS)
        return 0
    facts = {
        "recipe": talking.RECIPES.format(talking.MODELS[row].train),
        "hash": recipe_hash(ROOT / talking.RECIPES.format(talking.MODELS[row].train)),
        "words": list(talking.MODELS[row].words),
        "weights": content_hash(ROOT / run(row) / WEIGHTS[0]),
        "training": read_curves(ROOT / run(row)),
    }
    talking.record_row(row, sound, ROOT / folder(row, sound), ROOT / RECORDS, facts)
    return 0


def run(row: str) -> Path:
    """Returns the run folder of a model."""
    return RUNS / f"avatar_{talking.MODELS[row].train}"


def folder(row: str, sound: str) -> Path:
    """Returns the folder of a row's videos; those of other weights never mix."""
    weights = ROOT / run(row) / WEIGHTS[0]
    return VIDEOS / f"{row}_{sound}_{content_hash(weights)[:8] if weights.exists() else 'none'}"


def steps(row: str) -> int:
    """Returns the steps of a model's recipe."""
    layers = read_recipe(ROOT / talking.RECIPES.format(talking.MODELS[row].train))
    return next(layer.tree["steps"] for layer in reversed(layers) if "steps" in layer.tree)


def check_trained(row: str) -> None:
    """Raises ValueError for a training that ended before its last step."""
    if reason := why_unfinished(ROOT / run(row), steps(row)):
        raise ValueError(f"{reason}; start again to go on")


if __name__ == "__main__":
    raise SystemExit(main())

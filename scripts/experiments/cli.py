"""Gives every experiment the same command: flags, a dry run, running the jobs, the message at the end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.experiments.experiment import Experiment
from scripts.experiments.jobs import run_jobs
from scripts.experiments.plan import ROOT, Plan, check_name, choose_rows
from scripts.experiments.trainings import Folders
from utils import log


def make_parser(script: str, text: str, rows: Iterable[str], name: str, videos: str = "--videos"):
    """Returns a parser with the flags that every experiment has.

    text: the script's docstring. name: of the folders below runs/, outputs/ and docs/results/. videos: the flag that
    names the folder of the videos.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(script, description=text, formatter_class=form, allow_abbrev=False)
    known = ",".join(rows)
    parser.add_argument("--rows", default="", help=f"some of {known} (default: all; a * stands for any letters)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, a thread each")
    parser.add_argument("--again", action="store_true", help="measure recorded rows too; videos and trainings are kept")
    parser.add_argument("--dry_run", action="store_true", help="print jobs and commands, run nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs", name), help="where trainings live")
    parser.add_argument(videos, dest="folder", type=Path, default=Path("outputs", name), help="where videos go")
    parser.add_argument("--records", type=Path, default=Path("docs/results", name), help="where records go")
    return parser


def run(
    parser: argparse.ArgumentParser,
    flags: argparse.Namespace,
    root: Path,
    build: Callable[[], tuple[Plan, dict[str, Path]]],
    draw: Callable[[], None] = lambda: None,
) -> int:
    """Returns the exit status: 0 all rows are there, 1 a job failed, 2 bad input, 130 interrupted.

    build() -> (the plan, {training: run folder that serves as it}); raises ValueError for bad flags. draw(): draws the
    pictures; called, before the tables are rewritten, when the jobs have ended and the records are those of the
    project's pages. root: the folder that holds train.py, configs/ and the rest; commands run in it, and relative
    paths are from it.
    """
    log.setup()
    if flags.jobs < 1:
        raise ValueError(f"--jobs is {flags.jobs}; write 1 or more")
    plan, adopted = build()
    rows = choose_rows(flags.rows, plan.rows)
    experiment = Experiment(plan, Folders(root, flags.runs, flags.folder, flags.records), adopted)
    cases = experiment.pending(rows, flags.again)
    if flags.dry_run:
        return show(experiment, rows, cases)
    experiment.check(cases)
    ended = run_jobs(experiment.jobs(cases), flags.jobs, root, root / flags.runs / "logs")
    if (root / flags.records).resolve() == ROOT / parser.get_default("records"):
        from scripts import tables

        draw()
        tables.main([])
    failed = {name: reason for name, reason in ended.items() if reason}
    print(f"{len(ended) - len(failed)} of {len(ended)} jobs are done")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason.splitlines()[0]}")
    return int(bool(failed))


def show(experiment: Experiment, rows: list[str], cases: list) -> int:
    """Prints every job with its commands, and which rows are finished; returns 0."""
    for job in experiment.jobs(cases):
        print(f"{job.name}" + (f"  (after {', '.join(job.needs)})" if job.needs else ""))
        for command in job.commands():
            print(f"  {command.text}")
    for row in rows:
        if not experiment.pending([row]):
            print(f"{row}: finished")
    return 0


def read_folders(flag: str, pairs: list[str], names: Iterable[str], what: str, root: Path) -> dict[str, Path]:
    """Returns {name: run folder of train.py} of `NAME=DIR` words.

    what: what the names are, in messages. Errors: ValueError for another form, no such name, or no such folder.
    """
    found, known = {}, list(names)
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise ValueError(f"{flag} {pair!r} is not {what.upper()}=DIR, e.g. {known[-1]}=runs/mine")
        check_name(name, known, what)
        if not (root / folder).is_dir():
            raise ValueError(f"{flag} {pair!r}: {folder} is not a folder; give a run folder of train.py")
        found[name] = root / folder
    return found

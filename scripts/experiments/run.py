"""What the scripts of the digits tables share: flags, a dry run, running the jobs, what is said at the end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.experiments import plan as digits_plan
from scripts.experiments.jobs import run_jobs
from utils import log


def make_parser(script: str, text: str, rows: Iterable[str]) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every table has; text: the script's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(script, description=text, formatter_class=form, allow_abbrev=False)
    known = ",".join(rows)
    parser.add_argument("--rows", default="", help=f"some of {known} (default: all; a * stands for any letters)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, a thread each")
    parser.add_argument("--again", action="store_true", help="measure recorded rows too; videos and trainings are kept")
    parser.add_argument("--dry_run", action="store_true", help="print jobs and commands, run nothing")
    return parser


def run_rows(script: str, flags: argparse.Namespace, root: Path, plan: Callable[[], tuple], write: Callable) -> int:
    """Returns the exit status: 0 all rows are there, 1 a job failed, 2 bad input, 130 interrupted.

    plan() -> (a VideoTable, its chosen rows), and raises ValueError for bad flags; write(): pages and curves, when the
    jobs have ended. root: the folder in which commands run.
    """
    log.setup()
    try:
        if flags.jobs < 1:
            raise ValueError(f"--jobs is {flags.jobs}; write 1 or more")
        table, rows = plan()
        jobs = table.jobs(rows, flags.again)
        if flags.dry_run:
            return show(jobs, table, rows)
        table.check(jobs)
        ended = run_jobs(jobs, flags.jobs, root, root / table.folders.runs / "logs")
    except (ValueError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{script}: interrupted; run again to go on", file=sys.stderr)
        return 130
    write()
    failed = {name: reason for name, reason in ended.items() if reason}
    print(f"{len(ended) - len(failed)} of {len(ended)} jobs are done")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason.splitlines()[0]}")
    return int(bool(failed))


def show(jobs, table, rows) -> int:
    """Prints every job with its commands, and which rows are finished; returns 0."""
    for job in jobs:
        print(f"{job.name}" + (f"  (after {', '.join(job.needs)})" if job.needs else ""))
        for command in job.commands():
            print(f"  {command.text}")
    for row in rows:
        if all(table.is_recorded(case) for case in table.cases([row])):
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
        digits_plan.check_name(name, known, what)
        if not (root / folder).is_dir():
            raise ValueError(f"{flag} {pair!r}: {folder} is no folder; give a run folder of train.py")
        found[name] = root / folder
    return found


def is_own(root: Path, records: Path, own: Path) -> bool:
    """True if the records are those that the project's pages show; those of another folder stay where they are."""
    return (root / records).resolve() == (digits_plan.ROOT / own).resolve()

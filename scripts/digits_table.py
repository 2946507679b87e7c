"""Trains and measures the rows of the digits table; what is finished is skipped, so the same call goes on.

    python scripts/digits_table.py                                  # the whole table, one process per core
    python scripts/digits_table.py --rows dmd,sid --jobs 1
    python scripts/digits_table.py --budget gpu                     # three seeds, 256 films a length
    python scripts/digits_table.py --rows dmd --runs_from dmd=runs/digits_dmd    # a training that is there already
    python scripts/digits_table.py --dry_run                        # what would be run, and what is finished

Trainings live in runs/table/<training>/seed<k>, logs in runs/table/logs, films in outputs/table/<row>/seed<k>, one
record a row and seed in docs/results/table. A row is finished when its record tells of the same recipes, steps, seed,
prompts and number of films (and of the same weights, where these are at hand). At the end the tables of the pages
and the curves are written anew (scripts/tables.py, scripts/digits_curves.py).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import digits_plan
from scripts.digits_films import Table
from scripts.digits_jobs import run_jobs
from scripts.digits_training import Folders, Trainings
from utils import log

logger = logging.getLogger("scripts.digits_table")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("digits_table.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--rows", default="", help=f"some of {','.join(digits_plan.ROWS)} (default: all)")
    parser.add_argument("--budget", choices=sorted(digits_plan.BUDGETS), default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, a thread each")
    parser.add_argument(
        "--runs_from",
        action="append",
        default=[],
        metavar="ROW=DIR",
        help="a finished run folder of train.py that serves as this row's training of seed 0; it is only read",
    )
    parser.add_argument("--again", action="store_true", help="measure recorded rows too; films and trainings are kept")
    parser.add_argument("--dry_run", action="store_true", help="print jobs and commands, run nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/table"), help="where trainings live")
    parser.add_argument("--films", type=Path, default=Path("outputs/table"), help="where films go")
    parser.add_argument("--records", type=Path, default=digits_plan.RECORDS, help="where records go")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, root: Path = digits_plan.ROOT) -> int:
    """Returns the exit status: 0 all rows are there, 1 a job failed, 2 bad input, 130 interrupted.

    root: the folder that holds train.py, configs/ and the rest; commands run in it, and relative paths are from it.
    """
    flags = parse(arguments)
    log.setup()
    try:
        rows = digits_plan.choose_rows(flags.rows)
        if flags.jobs < 1:
            raise ValueError(f"--jobs is {flags.jobs}; write 1 or more")
        folders = Folders(root, flags.runs, flags.films, flags.records)
        runs_from = read_runs_from(flags.runs_from, root)
        table = Table(Trainings(folders, digits_plan.BUDGETS[flags.budget], runs_from))
        jobs = table.jobs(rows, flags.again)
        if flags.dry_run:
            return show(jobs, table, rows)
        ended = run_jobs(jobs, flags.jobs, root, root / flags.runs / "logs")
    except (ValueError, OSError) as error:
        print(f"digits_table.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("digits_table.py: interrupted; run again to go on", file=sys.stderr)
        return 130
    write_pages(root, flags.records)
    failed = {name: reason for name, reason in ended.items() if reason}
    print(f"{len(ended) - len(failed)} of {len(ended)} jobs are done")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason.splitlines()[0]}")
    return int(bool(failed))


def read_runs_from(pairs: list[str], root: Path) -> dict[str, Path]:
    """Returns {training: run folder} of `ROW=DIR` words.

    Errors: ValueError for another form, no such row, a row that is not trained here, or a folder that is not there.
    """
    found = {}
    for pair in pairs:
        row, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise ValueError(f"--runs_from {pair!r} is not ROW=DIR, e.g. dmd=runs/digits_dmd")
        digits_plan.check_name(row, digits_plan.ROWS, "row")
        name = digits_plan.ROWS[row].training
        if digits_plan.TRAININGS[name].shipped:
            raise ValueError(f"--runs_from {pair!r}: {row} runs shipped weights, nothing is trained for it")
        if not (root / folder).is_dir():
            raise ValueError(f"--runs_from {pair!r}: {folder} is no folder; give a run folder of train.py")
        found[name] = root / folder
    return found


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


def write_pages(root: Path, records: Path) -> None:
    """Writes curves and tables of the project's own records; those of another folder stay where they are."""
    if (root / records).resolve() != (digits_plan.ROOT / digits_plan.RECORDS).resolve():
        return
    from scripts import digits_curves, tables

    digits_curves.main([])
    tables.main([])


if __name__ == "__main__":
    raise SystemExit(main())

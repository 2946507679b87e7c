"""Trains and measures the rows of the digits table; what is finished is skipped, so the same call goes on.

    python scripts/digits_table.py                                  # the whole table, one process per core
    python scripts/digits_table.py --rows dmd,sid --jobs 1
    python scripts/digits_table.py --budget gpu                     # three seeds, 256 videos a length
    python scripts/digits_table.py --rows dmd --runs_from dmd=runs/digits_dmd    # a training that is there already
    python scripts/digits_table.py --dry_run                        # what would be run, and what is finished

Trainings live in runs/table/<training>/seed<k>, logs in runs/table/logs, videos in outputs/table/<row>/seed<k>, one
record a row and seed in docs/results/table. A row is finished when its record tells of the same recipes, steps, seed,
prompts and number of videos (and of the same weights, where these are at hand). At the end the tables of the pages
and the curves are written anew (scripts/tables.py, scripts/experiments/curves.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import plan as digits_plan
from scripts.experiments.run import is_own, make_parser, read_folders, run_rows
from scripts.experiments.training import Folders, Trainings
from scripts.experiments.videos import Table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser("digits_table.py", __doc__, digits_plan.ROWS)
    parser.add_argument("--budget", choices=sorted(digits_plan.BUDGETS), default="cpu")
    parser.add_argument(
        "--runs_from",
        action="append",
        default=[],
        metavar="ROW=DIR",
        help="a finished run folder of train.py that serves as this row's training of seed 0; it is only read",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/table"), help="where trainings live")
    parser.add_argument("--videos", type=Path, default=Path("outputs/table"), help="where videos go")
    parser.add_argument("--records", type=Path, default=digits_plan.RECORDS, help="where records go")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, root: Path = digits_plan.ROOT) -> int:
    """Returns the exit status: 0 all rows are there, 1 a job failed, 2 bad input, 130 interrupted.

    root: the folder that holds train.py, configs/ and the rest; commands run in it, and relative paths are from it.
    """
    flags = parse(arguments)

    def plan():
        rows = digits_plan.choose_rows(flags.rows)
        folders = Folders(root, flags.runs, flags.videos, flags.records)
        budget, runs_from = digits_plan.BUDGETS[flags.budget], read_runs_from(flags.runs_from, root)
        return Table(Trainings(folders, budget, runs_from)), rows

    return run_rows("digits_table.py", flags, root, plan, lambda: write_pages(root, flags.records))


def read_runs_from(pairs: list[str], root: Path) -> dict[str, Path]:
    """Returns {training: run folder} of `ROW=DIR` words.

    Errors: ValueError for another form, no such row, a row that is not trained here, or a folder that is not there.
    """
    found = {}
    for row, folder in read_folders("--runs_from", pairs, digits_plan.ROWS, "row", root).items():
        name = digits_plan.ROWS[row].training
        if digits_plan.TRAININGS[name].shipped:
            raise ValueError(f"--runs_from {row}: {row} runs shipped weights, nothing is trained for it")
        found[name] = folder
    return found


def write_pages(root: Path, records: Path) -> None:
    """Writes curves and tables of the project's own records."""
    if is_own(root, records, digits_plan.RECORDS):
        from scripts import tables
        from scripts.experiments import curves as digits_curves

        digits_curves.main([])
        tables.main([])


if __name__ == "__main__":
    raise SystemExit(main())

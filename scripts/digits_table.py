"""Trains and measures the rows of the digits table; finished ones are skipped, so the same call resumes.

    python scripts/digits_table.py                                  # the whole table, one process per core
    python scripts/digits_table.py --rows dmd,sid --jobs 1
    python scripts/digits_table.py --budget gpu                     # three seeds, 256 videos a length
    python scripts/digits_table.py --rows dmd --runs_from dmd=runs/digits_dmd    # a training that is there already
    python scripts/digits_table.py --dry_run                        # what would be run, and what is finished
    python scripts/digits_table.py --verify --rows dmd              # trains again elsewhere, shows ours and the record

Trainings live in runs/table/<training>/seed<k>, logs in runs/table/logs, videos in outputs/table/<row>/seed<k>, one
record a row and seed in docs/results/table. A row is finished when its record holds the same recipes, steps, seed,
prompts and number of videos (and the same weights, unless these are missing here). At the end the curves are drawn and
the tables of the pages are rewritten (scripts/tables.py).

--verify trains and measures in runs/table_verify and outputs/table_verify, whatever is recorded, leaves the project's
records and pages as they are, and at the end prints each number next to the record's with its interval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import cli, objectives, verify
from scripts.experiments.plan import ROOT, choose_rows
from utils.door import door


@door("digits_table.py", "run again to go on")
def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status of `cli.run`; root: the project to run in."""
    parser = cli.make_parser("digits_table.py", __doc__, objectives.ROWS, "table")
    parser.add_argument("--budget", choices=sorted(objectives.BUDGETS), default="cpu")
    parser.add_argument(
        "--runs_from",
        action="append",
        default=[],
        metavar="ROW=DIR",
        help="a finished run folder of train.py that serves as this row's training of seed 0; it is only read",
    )
    parser.add_argument(
        "--verify", action="store_true", help="train again in other folders and compare with the records"
    )
    flags = parser.parse_args(arguments)
    if flags.verify:
        turn_aside(parser, flags)

    def build():
        return objectives.make_plan(objectives.BUDGETS[flags.budget]), read_runs_from(flags, root)

    status = cli.run(parser, flags, root, build, draw)
    if flags.verify and not flags.dry_run and status in (0, 1):
        rows = choose_rows(flags.rows, list(objectives.ROWS))
        print("\n".join(verify.compare(root / flags.records, root / parser.get_default("records"), rows)))
    return status


def turn_aside(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Puts the folders that the user did not choose elsewhere: nothing of the recorded table is read or written."""
    runs, videos = Path("runs", verify.NAME), Path("outputs", verify.NAME)
    for name, folder in (("runs", runs), ("folder", videos), ("records", videos / "records")):
        if getattr(flags, name) == parser.get_default(name):
            setattr(flags, name, folder)


def read_runs_from(flags: argparse.Namespace, root: Path) -> dict[str, Path]:
    """Returns {training: run folder} of --runs_from.

    Errors: ValueError for another form, no such row, a row that is not trained here, or a folder that is not there.
    """
    found = {}
    for row, folder in cli.read_folders("--runs_from", flags.runs_from, objectives.ROWS, "row", root).items():
        name = objectives.ROWS[row].training
        if objectives.TRAININGS[name].shipped:
            raise ValueError(f"--runs_from {row}: {row} runs shipped weights, nothing is trained for it")
        found[name] = folder
    return found


def draw() -> None:
    """Draws the curves of the project's records."""
    from scripts.experiments import objectives_results

    objectives_results.draw(ROOT)


if __name__ == "__main__":
    raise SystemExit(main())

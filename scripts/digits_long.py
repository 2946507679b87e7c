"""Videos of fifty training lengths and prompt switches in the digits world: before and after long tuning, measured.

    python scripts/digits_long.py                                   # everything, one process per core
    python scripts/digits_long.py --weights runs/digits_dmd/export/transformer     # the student to start from
    python scripts/digits_long.py --rows 'sink_*,switch_*' --jobs 1
    python scripts/digits_long.py --tuned sink=runs/digits_longlive_stream         # a tuning that is there already
    python scripts/digits_long.py --videos 8 --length 10 --updates 50               # a smaller budget, recorded as such
    python scripts/digits_long.py --dry_run                         # what would be run, and what is finished

Rows: <layout>_<before|after> (32 videos, measured at 1, 2, 5, 10, 20 and 50 training lengths) and
switch_<recache>_<before|after> (32 scripts whose prompt changes in colour, direction and digit, layout `sink`).
Tunings live in runs/long/<layout>/seed0, logs in runs/long/logs, videos in outputs/long, one record a row in
docs/results/long. A row is finished when its record tells of the same recipes, weights, prompts, cache and of as many
and as long videos, or of more. At the end the tables of the pages and the curves are written anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import long_plan as digits_long_plan
from scripts.experiments import plan as digits_plan
from scripts.experiments.long_videos import LongTable
from scripts.experiments.run import is_own, make_parser, read_folders, run_rows
from scripts.experiments.training import Folders, Trainings


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser("digits_long.py", __doc__, digits_long_plan.ROWS)
    parser.add_argument("--weights", default=digits_long_plan.STUDENT, help="the few-step student: folder or file")
    parser.add_argument(
        "--tuned",
        action="append",
        default=[],
        metavar="LAYOUT=DIR",
        help="a finished run folder of train.py that serves as this layout's tuning; it is only read",
    )
    parser.add_argument("--videos", type=int, default=digits_long_plan.PROMPTS.count, help="videos and scripts a row")
    parser.add_argument("--length", type=int, default=digits_long_plan.LENGTH, help="of videos, in training lengths")
    parser.add_argument("--updates", type=int, help="of the generator in each tuning (default: the recipe's)")
    parser.add_argument("--runs", type=Path, default=Path("runs/long"), help="where tunings live")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/long"), help="where videos go")
    parser.add_argument("--records", type=Path, default=digits_long_plan.RECORDS, help="where records go")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, root: Path = digits_plan.ROOT) -> int:
    """Returns the exit status: 0 all rows are there, 1 a job failed, 2 bad input, 130 interrupted.

    root: the folder that holds train.py, configs/ and the rest; commands run in it, and relative paths are from it.
    """
    flags = parse(arguments)

    def plan():
        rows = digits_plan.choose_rows(flags.rows, digits_long_plan.ROWS)
        folders = Folders(root, flags.runs, flags.outputs, flags.records)
        tuned = read_folders("--tuned", flags.tuned, digits_long_plan.LAYOUTS, "layout", root)
        weights = digits_long_plan.trainings(flags.weights, flags.updates)
        trainings = Trainings(folders, digits_long_plan.budget(flags.videos), tuned, weights)
        return LongTable(trainings, flags.length), rows

    return run_rows("digits_long.py", flags, root, plan, lambda: write_pages(root, flags.records))


def write_pages(root: Path, records: Path) -> None:
    """Writes curves and tables of the project's own records."""
    if is_own(root, records, digits_long_plan.RECORDS):
        from scripts import tables
        from scripts.experiments import long_curves as digits_long_curves

        digits_long_curves.main([])
        tables.main([])


if __name__ == "__main__":
    raise SystemExit(main())

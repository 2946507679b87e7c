"""Trains and measures the digits with sparse attention: what an untrained mask costs, and what training wins back.

    python scripts/digits_sparse.py                                 # everything, one process per core; resumes
    python scripts/digits_sparse.py --rows "causal_*" --jobs 1
    python scripts/digits_sparse.py --budget gpu                    # three seeds, 2,000 updates
    python scripts/digits_sparse.py --dry_run                       # what would be run, and what is finished

Trainings live in runs/sparse/<training>/seed<k>, videos in outputs/sparse, one record a row and seed in
docs/results/sparse. At the end docs/images/digits_sparse.png is drawn and the tables are rewritten (scripts/tables.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import cli, sparse
from scripts.experiments.plan import ROOT
from utils.door import door


@door("digits_sparse.py", "run again to go on")
def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status of `cli.run`; root: the project to run in."""
    parser = cli.make_parser("digits_sparse.py", __doc__, sparse.ROWS, "sparse", "--outputs")
    parser.add_argument("--budget", choices=sorted(sparse.BUDGETS), default="cpu")
    parser.add_argument(
        "--runs_from",
        action="append",
        default=[],
        metavar="TRAINING=DIR",
        help="a finished run folder of train.py that serves as this training of seed 0; it is only read",
    )
    flags = parser.parse_args(arguments)
    return cli.run(parser, flags, root, lambda: build(flags, root), draw)


def build(flags: argparse.Namespace, root: Path):
    """Returns the plan and the run folders that were given."""
    own = [name for name, training in sparse.TRAININGS.items() if not training.shipped]
    given = cli.read_folders("--runs_from", flags.runs_from, own, "training", root)
    return sparse.make_plan(sparse.BUDGETS[flags.budget]), given


def draw() -> None:
    """Draws the picture of the project's records."""
    from scripts.experiments import sparse_results

    sparse_results.draw(ROOT)


if __name__ == "__main__":
    raise SystemExit(main())

"""Makes digits videos of fifty training lengths and with prompt switches, before and after long tuning, measured.

    python scripts/digits_long.py                                   # everything, one process per core
    python scripts/digits_long.py --weights runs/digits_dmd/export/transformer     # the student to start from
    python scripts/digits_long.py --rows 'sink_*,switch_*' --jobs 1
    python scripts/digits_long.py --tuned sink=runs/digits_longlive_stream         # a tuning that is there already
    python scripts/digits_long.py --videos 8 --length 10 --updates 50               # a smaller budget, recorded as such
    python scripts/digits_long.py --dry_run                         # what would be run, and what is finished

Rows: <cache>_<before|after> (32 videos, measured at 1, 2, 5, 10, 20 and 50 training lengths) and
switch_<recache>_<before|after> (32 prompt schedules that change colour, direction and digit, cache `sink`).
Tunings live in runs/long/<cache>/seed0, logs in runs/long/logs, videos in outputs/long, one record a row in
docs/results/long. A row is finished when its record holds the same recipes, weights, prompts, cache and as many and as
long videos, or more. At the end the curves are drawn and the tables of the pages are rewritten.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import cli, long_videos
from scripts.experiments.plan import ROOT
from utils.door import door  # noqa: E402


@door("digits_long.py", "run again to go on")
def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status of `cli.run`; root: the project to run in."""
    parser = cli.make_parser("digits_long.py", __doc__, long_videos.ROWS, "long", "--outputs")
    parser.add_argument("--weights", default=long_videos.STUDENT, help="the few-step student: folder or file")
    parser.add_argument(
        "--tuned",
        action="append",
        default=[],
        metavar="CACHE=DIR",
        help="a finished run folder of train.py that serves as this cache's tuning; it is only read",
    )
    parser.add_argument("--videos", type=int, default=long_videos.COUNT, help="videos a row")
    parser.add_argument("--length", type=int, default=long_videos.LENGTH, help="of videos, in training lengths")
    parser.add_argument("--updates", type=int, help="of the generator in each tuning (default: the recipe's)")
    flags = parser.parse_args(arguments)

    def build():
        tuned = cli.read_folders("--tuned", flags.tuned, long_videos.CACHES, "cache", root)
        return long_videos.make_plan(flags.weights, flags.updates, flags.videos, flags.length, root), tuned

    return cli.run(parser, flags, root, build, draw)


def draw() -> None:
    """Draws the curves of the project's records."""
    from scripts.experiments import long_results

    long_results.draw(ROOT)


if __name__ == "__main__":
    raise SystemExit(main())

"""Draws long videos and prompt switches from docs/results/long: `python scripts/experiments/long_curves.py`.

docs/images/digits_long_length.png: quality over the length, a line per cache layout, before and after tuning.
docs/images/digits_long_switch.png: share of the frames that show the new value, around the change of the prompt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.experiments.curves import draw
from scripts.experiments.long_plan import ROOT, ROWS, STAGES
from scripts.experiments.long_tables import read_rows
from utils.digits.switch import ATTRIBUTES, JUMP

METRICS = ("digit", "colour", "direction", "consistency", "sharpness")


def main(arguments: list[str] | None = None) -> int:
    """Draws both pictures; one for which nothing is recorded is left as it is. Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the project whose records are drawn")
    flags = parser.parse_args(arguments)
    looks = {line_name(row): look(row) for row in ROWS}
    images = flags.root / "docs/images"
    lengths = length_panels(read_rows(flags.root, False))
    draw(lengths, images / "digits_long_length.png", "training lengths", 3, looks, scale="log")
    switches = switch_panels(read_rows(flags.root, True))
    draw(switches, images / "digits_long_switch.png", "chunks since the change", 3, looks)
    return 0


def line_name(row: str) -> str:
    """Returns what a row is called in a picture."""
    return f"{ROWS[row].title}, {STAGES[ROWS[row].stage]}"


def look(row: str) -> tuple[str, str]:
    """Returns (colour, line style): a colour for both stages of a layout or recache; dashed before tuning."""
    alike = (other.title for other in ROWS.values() if other.videos == ROWS[row].videos)
    titles = list(dict.fromkeys(alike))
    return f"C{titles.index(ROWS[row].title)}", "--" if ROWS[row].stage == "before" else "-"


def length_panels(records: dict[str, dict | None]) -> dict:
    """Returns {metric: {line: (training lengths, means, None)}}."""
    panels = {}
    for metric in (*METRICS, "frechet"):
        for row, record in records.items():
            if record is not None:
                ends = {int(end): content for end, content in record["ends"].items()}
                means = [(c["frechet"] if metric == "frechet" else c["metrics"][metric]) for c in ends.values()]
                values = [m and m["mean"] for m in means]
                panels.setdefault(metric, {})[line_name(row)] = (list(ends), values, None)
    return panels


def switch_panels(records: dict[str, dict | None]) -> dict:
    """Returns {attribute: {line: (chunks since the change, share of frames, None)}}; chunk 1 is the first after it."""
    panels = {}
    for attribute in ATTRIBUTES:
        for row, record in records.items():
            if record is not None and attribute in record["switches"]:
                curve = record["switches"][attribute]["curve"]
                x = [k - JUMP + 1 for k in range(len(curve))]
                panels.setdefault(f"new {attribute}", {})[line_name(row)] = (x, curve, None)
    return panels


if __name__ == "__main__":
    raise SystemExit(main())

"""Sets a digits table that was trained again next to the recorded one: each number with the record's interval."""

from __future__ import annotations

from pathlib import Path

from scripts.experiments.objectives import LENGTHS, ROWS
from scripts.experiments.objectives_results import GATED, over_seeds
from scripts.experiments.records import read_seeds
from scripts.measure.markdown import mean_and_half, table_head, table_row

NAME = "table_verify"  # of its folders below runs/ and outputs/
SAME = ("hash", "steps", "sampling", "prompts", "videos", "frames", "shipped")  # facts without which numbers may differ


def compare(ours: Path, theirs: Path, rows: list[str]) -> list[str]:
    """Returns a markdown table: each gated metric of each row and length, ours, the record's, and how they lie.

    ours, theirs: folders of records. `inside`: our mean lies in the record's 95 % interval; `overlaps`: the intervals
    do; `apart`: neither. One of twenty right numbers lies outside an interval of 95 %.
    """
    lines, places = table_head(["row", "length", "metric", "ours", "record", "record's interval", "ours lies"]), []
    for row in rows:
        new, old = (read_seeds(folder, row, LENGTHS) for folder in (ours, theirs))
        for length in ROWS[row].lengths:
            made, recorded = ([record[length] for record in found if length in record] for found in (new, old))
            if not made or not recorded:
                lines.append(table_row([row, length, *["not measured" if not made else "no record"] * 5]))
                continue
            remark = describe(made[0]["facts"], recorded[0]["facts"])
            for metric in GATED:
                mine, known = over_seeds(made, "metrics", metric), over_seeds(recorded, "metrics", metric)
                places.append(place(mine, known))
                span = f"{known['low']:.3f} .. {known['high']:.3f}"
                cells = [mean_and_half(mine), f"{known['mean']:.3f}", span, places[-1] + remark]
                lines.append(table_row([row, length, metric, *cells]))
    counts = ", ".join(f"{places.count(name)} {name}" for name in ("inside", "overlaps", "apart"))
    return [*lines, f"{len(places)} numbers: {counts}"]


def place(ours: dict, record: dict) -> str:
    """Returns where an interval {mean, low, high} lies to the recorded one."""
    if record["low"] <= ours["mean"] <= record["high"]:
        return "inside"
    return "overlaps" if ours["low"] <= record["high"] and record["low"] <= ours["high"] else "apart"


def describe(ours: dict, record: dict) -> str:
    """Returns which facts of a measurement are not those of the record, for its cell."""
    other = [name for name in SAME if ours.get(name) != record.get(name)]
    return f" (other {', '.join(other)})" if other else ""

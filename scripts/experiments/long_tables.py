"""The tables of long videos and prompt switches, from docs/results/long; rows that were not run say so.

`long`: three lengths, for the README; `long-full`: every length with its interval and the Frechet distance;
`long-switch`: what a change of the prompt takes, by kind of recache; `long-switch-full`: attribute by attribute;
`long-cost`: what it took; `long-curves`: the pictures, if they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.experiments.long_plan import LENGTH, PROMPTS, RECORDS, ROWS, SHOWN, STAGES
from scripts.experiments.records import read_whole
from scripts.markdown import head, line, with_half
from utils.digits.switch import ATTRIBUTES

GATED = ("digit", "colour", "direction")
SWITCH = ("recache", "weights", "reached", "chunks until then", "kept", "jump (usual), pixels", "flicker")
PICTURES = {
    "length": "Quality along the videos, a point a length",
    "switch": "Share of the frames that show the new value, chunk by chunk around the change",
}


def long_table(name: str, root: Path) -> str:
    """Returns the markdown of one of `TABLES`. Errors: ValueError for a name without a maker."""
    if name not in TABLES:
        raise ValueError(f"no table {name!r}; known: {sorted(TABLES)}")
    return TABLES[name](root)


def read_rows(root: Path, switches: bool) -> dict[str, dict | None]:
    """Returns {row: its record or None} of the long videos, or of the scripts."""
    return {row: read_whole(root / RECORDS / f"{row}.json") for row, p in ROWS.items() if bool(p.recache) == switches}


def fill(cells: Sequence[str], rows: dict[str, dict | None], numbers) -> list[str]:
    """Returns a table with the first cells cache (or recache) and weights; numbers(record) -> the other cells."""
    lines = head(cells)
    for row, record in rows.items():
        command = f"not run: `python scripts/digits_long.py --rows {row}`"
        own = [command, *[""] * (len(cells) - 3)] if record is None else numbers(record)
        lines.append(line([ROWS[row].title, STAGES[ROWS[row].stage], *own]))
    return lines


def short(root: Path) -> str:
    """The means at one, ten and fifty training lengths, and what is lost from the first to the last."""
    rows, shown = read_rows(root, False), ("1", "10", str(LENGTH))

    def numbers(record):
        cells = [triple(record["ends"].get(end)) for end in shown]
        return [*cells, changes(record)]

    cells = [f"digit / colour / direction at {end}x" for end in shown]
    lines = fill(["cache", "weights", *cells, f"{LENGTH}x minus 1x"], rows, numbers)
    return "\n".join([*lines, *smaller(rows)])


def triple(end: dict | None) -> str:
    """Returns the three means of one length; a dash if the videos are shorter."""
    return "-" if end is None else " / ".join(mean(end["metrics"][metric]) for metric in GATED)


def changes(record: dict, digits: int = 2) -> str:
    """Returns how much each metric changes from the first to the last length; a dash for shorter videos."""
    end = record["ends"].get(str(LENGTH))
    return "-" if end is None else " / ".join(with_half(end["change"][metric], digits, "+") for metric in GATED)


def mean(interval: dict, digits: int = 2) -> str:
    """Returns the mean alone."""
    return "-" if interval["mean"] is None else f"{interval['mean']:.{digits}f}"


def full(root: Path) -> str:
    """Every length: digit, colour, direction, Frechet distance with that of real clips."""
    parts, rows = [], read_rows(root, False)
    for metric in (*GATED, "Frechet (real)"):

        def numbers(record, metric=metric):
            ends = [record["ends"].get(str(end)) for end in SHOWN]
            return ["-" if end is None else measure(end, metric) for end in ends]

        lines = fill(["cache", "weights", *(f"{end}x" for end in SHOWN)], rows, numbers)
        parts.append("\n".join([f"{metric}:", "", *lines]))
    return "\n\n".join(["\n\n".join(parts), *smaller(rows)])


def measure(end: dict, metric: str) -> str:
    """Returns one metric, or the Frechet distance with that of as many real clips, of one length."""
    if metric in GATED:
        return with_half(end["metrics"][metric])
    if not end["frechet"]:
        return "-"
    floor = end["floor"] and end["floor"]["mean"]
    return with_half(end["frechet"], 1) + ("" if floor is None else f" ({floor:.1f})")


def switch_short(root: Path) -> str:
    """All changes together, by kind of recache."""
    rows = read_rows(root, True)
    lines = fill(SWITCH, rows, lambda record: switch_cells(record["switches"]["all"]))
    return "\n".join([*lines, *smaller(rows)])


def switch_full(root: Path) -> str:
    """A table an attribute."""
    parts, rows = [], read_rows(root, True)
    for attribute in ATTRIBUTES:
        lines = fill(SWITCH, rows, lambda record, of=attribute: switch_cells(record["switches"][of]))
        parts.append("\n".join([f"{attribute} changes:", "", *lines]))
    return "\n\n".join(parts)


def switch_cells(row: dict) -> list[str]:
    """Returns reached, chunks, kept, jump and flicker of one row of scripts/evaluate.py switches."""
    jump = f"{with_half(row['jump'], 1)} ({mean(row['usual'], 1)})"
    shares = with_half(row["reached"], 2), with_half(row["chunks"], 1), with_half(row["kept"], 2)
    return [*shares, jump, with_half(row["flicker"], 1)]


def smaller(rows: dict[str, dict | None]) -> list[str]:
    """Returns a note on rows whose videos are fewer or shorter than planned."""
    notes = []
    for row, record in rows.items():
        if record is None:
            continue
        videos, frames = record["facts"]["videos"], record["facts"]["frames"]
        if videos < PROMPTS.count or not ROWS[row].recache and str(LENGTH) not in record["ends"]:
            notes.append(f"`{row}`: {videos} videos of {frames} latent frames.")
    return ["", "A smaller budget: " + " ".join(notes)] if notes else []


def cost(root: Path) -> str:
    """Videos, updates of the tuning, times, hardware."""
    rows = read_rows(root, False) | read_rows(root, True)
    cells = ["cache or recache", "weights", "videos", "updates", "tuning", "videos, measuring", "hardware"]
    return "\n".join(fill(cells, rows, costs))


def costs(record: dict) -> list[str]:
    """Returns what one row took; a tuning stands in every row that uses it."""
    facts, training, seconds = record["facts"], record["training"], record["seconds"]
    videos = f"{facts['videos']} of {facts['frames']} latent frames"
    tuned = [training["updates"], f"{training['minutes']:.0f} min"] if "updates" in training else ["-", "-"]
    took = f"{seconds['films'] / 60:.0f} + {seconds['evaluate'] / 60:.0f} min"
    return [videos, *tuned, took, record["hardware"]["name"]]


def curves(root: Path) -> str:
    """The pictures that scripts/experiments/long_curves.py drew."""
    there = {n: text for n, text in PICTURES.items() if (root / f"docs/images/digits_long_{n}.png").exists()}
    links = [f"![{text}](images/digits_long_{name}.png)" for name, text in there.items()]
    return "\n\n".join(links) or "not drawn: `python scripts/experiments/long_curves.py` draws the rows that were run"


TABLES = {
    "long": short,
    "long-full": full,
    "long-switch": switch_short,
    "long-switch-full": switch_full,
    "long-cost": cost,
    "long-curves": curves,
}

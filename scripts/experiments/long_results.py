"""Shows the records of long videos and prompt switches (docs/results/long) as tables and curves.

`long`: three lengths, for the README; `long-full`: every length with its interval and the Frechet distance;
`long-switch`: what a change of the prompt takes, by kind of recache; `long-switch-full`: attribute by attribute;
`long-cost`: what it took; `long-curves`: the pictures, if they are drawn:
docs/images/digits_long_length.png: quality over the length, a line per cache policy, before and after tuning;
docs/images/digits_long_switch.png: share of the frames that show the new value, around the change of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.experiments import figures
from scripts.experiments.long_videos import COUNT, LENGTH, ROWS, STAGES
from scripts.experiments.records import read_record
from scripts.measure.markdown import mean_and_half
from utils.digits.switch import ATTRIBUTES, JUMP

GATED = ("digit", "colour", "direction")
LENGTHS = (1, 2, 5, 10, 20, 50)  # training lengths of the full table; the other ones are points of the curves
CURVES = (*GATED, "consistency", "sharpness")
SWITCH = ["recache", "weights", "reached", "chunks until then", "kept", "jump (usual), pixels", "flicker"]
PICTURES = {
    "length": "Quality along the videos, a point a length",
    "switch": "Share of the frames that show the new value, chunk by chunk around the change",
}


def read_rows(root: Path, switches: bool) -> dict[str, dict | None]:
    """Returns {row: its record or None} of the long videos, or of the prompt schedules."""
    rows = [name for name, row in ROWS.items() if bool(row.recache) == switches]
    return {row: read_record(root / f"docs/results/long/{row}.json") for row in rows}


def fill(header: list[str], rows: dict[str, dict | None], numbers: Callable[[dict], list]) -> list[str]:
    """Returns a table whose first cells are cache (or recache) and weights; numbers(record) -> the other cells."""
    command = "python scripts/digits_long.py --rows"
    return figures.fill(header, rows, get_titles, command, lambda row, record: numbers(record))


def get_titles(row: str) -> list[str]:
    """Returns what a row is called: cache or recache, and stage."""
    return [ROWS[row].title, STAGES[ROWS[row].stage]]


def short(root: Path) -> str:
    """Returns the means at one, ten and fifty training lengths, and what is lost from the first to the last."""
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
    return "-" if end is None else " / ".join(mean_and_half(end["change"][metric], digits, "+") for metric in GATED)


def mean(interval: dict, digits: int = 2) -> str:
    """Returns the mean alone."""
    return "-" if interval["mean"] is None else f"{interval['mean']:.{digits}f}"


def full(root: Path) -> str:
    """Returns every length: digit, colour, direction, Frechet distance with that of real clips."""
    parts, rows = [], read_rows(root, False)
    for metric in (*GATED, "Frechet (real)"):

        def numbers(record, metric=metric):
            ends = [record["ends"].get(str(end)) for end in LENGTHS]
            return ["-" if end is None else measure(end, metric) for end in ends]

        lines = fill(["cache", "weights", *(f"{end}x" for end in LENGTHS)], rows, numbers)
        parts.append("\n".join([f"{metric}:", "", *lines]))
    return "\n\n".join(["\n\n".join(parts), *smaller(rows)])


def measure(end: dict, metric: str) -> str:
    """Returns one metric, or the Frechet distance with that of as many real clips, of one length."""
    if metric in GATED:
        return mean_and_half(end["metrics"][metric])
    if not end["frechet"]:
        return "-"
    floor = end["floor"] and end["floor"]["mean"]
    return mean_and_half(end["frechet"], 1) + ("" if floor is None else f" ({floor:.1f})")


def switch_short(root: Path) -> str:
    """Returns all changes together, by kind of recache."""
    rows = read_rows(root, True)
    lines = fill(SWITCH, rows, lambda record: switch_cells(record["switches"]["all"]))
    return "\n".join([*lines, *smaller(rows)])


def switch_full(root: Path) -> str:
    """Returns a table for each attribute."""
    parts, rows = [], read_rows(root, True)
    for attribute in ATTRIBUTES:
        lines = fill(SWITCH, rows, lambda record, of=attribute: switch_cells(record["switches"][of]))
        parts.append("\n".join([f"{attribute} changes:", "", *lines]))
    return "\n\n".join(parts)


def switch_cells(row: dict) -> list[str]:
    """Returns reached, chunks, kept, jump and flicker of one row of scripts/evaluate.py switches."""
    jump = f"{mean_and_half(row['jump'], 1)} ({mean(row['usual'], 1)})"
    shares = mean_and_half(row["reached"], 2), mean_and_half(row["chunks"], 1), mean_and_half(row["kept"], 2)
    return [*shares, jump, mean_and_half(row["flicker"], 1)]


def smaller(rows: dict[str, dict | None]) -> list[str]:
    """Returns a note on rows whose videos are fewer or shorter than planned."""
    notes = []
    for row, record in rows.items():
        if record is None:
            continue
        videos, frames = record["facts"]["videos"], record["facts"]["frames"]
        if videos < COUNT or not ROWS[row].recache and str(LENGTH) not in record["ends"]:
            notes.append(f"`{row}`: {videos} videos of {frames} latent frames.")
    return ["", "A smaller budget: " + " ".join(notes)] if notes else []


def cost(root: Path) -> str:
    """Returns videos, updates of the tuning, times and hardware of each row."""
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


def link_pictures(root: Path) -> str:
    """Returns links to the pictures that are drawn."""
    there = {n: text for n, text in PICTURES.items() if (root / f"docs/images/digits_long_{n}.png").exists()}
    links = [f"![{text}](images/digits_long_{name}.png)" for name, text in there.items()]
    return "\n\n".join(links) or "not drawn: `python scripts/digits_long.py` draws the rows that were run"


def draw(root: Path) -> None:
    """Draws both pictures from the records of a project; one for which nothing is recorded is left as it is."""
    styles, images = {", ".join(get_titles(row)): get_style(row) for row in ROWS}, root / "docs/images"
    lengths, switches = length_panels(read_rows(root, False)), switch_panels(read_rows(root, True))
    figures.draw(lengths, images / "digits_long_length.png", "training lengths", 3, styles, scale="log")
    figures.draw(switches, images / "digits_long_switch.png", "chunks since the change", 3, styles)


def get_style(row: str) -> tuple[str, str]:
    """Returns (colour, line style): a colour for both stages of a cache or recache; dashed before tuning."""
    same = (other.title for other in ROWS.values() if bool(other.recache) == bool(ROWS[row].recache))
    titles = list(dict.fromkeys(same))
    return f"C{titles.index(ROWS[row].title)}", "--" if ROWS[row].stage == "before" else "-"


def length_panels(records: dict[str, dict | None]) -> dict:
    """Returns {metric: {line: (training lengths, means, None)}}."""
    panels = {}
    for metric in (*CURVES, "frechet"):
        for row, record in records.items():
            if record is not None:
                ends = {int(end): content for end, content in record["ends"].items()}
                means = [(c["frechet"] if metric == "frechet" else c["metrics"][metric]) for c in ends.values()]
                values = [m and m["mean"] for m in means]
                panels.setdefault(metric, {})[", ".join(get_titles(row))] = (list(ends), values, None)
    return panels


def switch_panels(records: dict[str, dict | None]) -> dict:
    """Returns {attribute: {line: (chunks since the change, share of frames, None)}}; chunk 1 is the first after it."""
    panels = {}
    for attribute in ATTRIBUTES:
        for row, record in records.items():
            if record is not None and attribute in record["switches"]:
                curve = record["switches"][attribute]["curve"]
                x = [k - JUMP + 1 for k in range(len(curve))]
                panels.setdefault(f"new {attribute}", {})[", ".join(get_titles(row))] = (x, curve, None)
    return panels


TABLES = {
    "long": short,
    "long-full": full,
    "long-switch": switch_short,
    "long-switch-full": switch_full,
    "long-cost": cost,
    "long-curves": link_pictures,
}

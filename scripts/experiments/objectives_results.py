"""Shows the digits table's records (docs/results/table): `objectives`, `objectives-cost` and the curves.

docs/images/digits_table_length.png: quality along videos of ten times the training length, a line per row.
docs/images/digits_table_training.png: what the trainings recorded, as scripts/plot_training.py draws a single one.
"""

from __future__ import annotations

from pathlib import Path

from scripts.experiments import figures
from scripts.experiments.objectives import CURVE_WINDOWS, LENGTHS, ROWS
from scripts.experiments.records import pool_seeds, read_seeds
from scripts.experiments.runs import smooth
from scripts.measure.markdown import mean_and_half
from scripts.measure.report import looks_cell

ALONG = ("digit", "colour", "direction", "consistency", "identity", "sharpness")
LOSSES = ("loss", "critic_loss", "generator_loss", "generator_dmd_gradient", "generator_sid_difference")
NORMS = ("grad_norm", "generator_grad_norm", "critic_grad_norm", "logit_real", "logit_fake")
GATED = ("digit", "colour", "direction")
FRECHET = {"1x": "first", "10x": "last"}  # which 33 frames of a video are compared with real clips


def read_rows(root: Path) -> dict[str, list[dict]]:
    """Returns {row: its records, seed after seed}."""
    return {row: read_seeds(root / "docs/results/table", row, LENGTHS) for row in ROWS}


def fill(root: Path, header: list[str], numbers) -> str:
    """Returns a table with a line a row; numbers(row, records) -> its cells behind the title."""
    lines = figures.fill(
        header, read_rows(root), lambda row: [ROWS[row].title], "python scripts/digits_table.py --rows", numbers
    )
    return "\n".join(lines)


def quality(root: Path) -> str:
    """Returns every objective at one and ten times the training length."""
    header = ["model", "steps per chunk"]
    for length in LENGTHS:
        header += [f"{metric} {length}" for metric in GATED] + [f"Frechet {length}, {FRECHET[length]} 33 frames (real)"]
        header += ["looks 1x"] if length == "1x" else []  # one set of videos says how many handwritings there are
    return fill(root, [*header, "drift at 10x: " + " / ".join(GATED)], quality_cells)


def cost(root: Path) -> str:
    """Returns what each row took."""
    header = ["model", "updates", "seeds", "videos", "training", "videos, measuring", "hardware"]
    return fill(root, header, cost_cells)


def quality_cells(row: str, records: list[dict]) -> list:
    """Returns steps per chunk, the metrics of each length, and what the videos lose from first to last quarter."""
    measured = {length: [r[length] for r in records if length in r] for length in LENGTHS}
    sampler = next(found[0]["sampler"] for found in measured.values() if found)
    first = f" (first {sampler['first_steps']})" if "first_steps" in sampler else ""
    cells: list = [f"{sampler['steps']}{first}"]
    for length, found in measured.items():
        if not found:
            cells += ["not run" if length in ROWS[row].lengths else "does not apply", "", "", ""]
            cells += ["-"] * (length == "1x")
            continue
        distance, floor = over_seeds(found, "frechet", FRECHET[length]), over_seeds(found, "frechet", "floor")["mean"]
        cells += [mean_and_half(over_seeds(found, "metrics", metric)) for metric in GATED]
        cells.append(mean_and_half(distance, 1) + ("" if floor is None else f" ({floor:.1f})"))
        cells += [looks_cell(over_seeds(found, "looks"))] * (length == "1x")
    changes = [over_seeds(measured["10x"], "drift", metric, "change") for metric in GATED] if measured["10x"] else []
    return [*cells, " / ".join(mean_and_half(change, sign="+") for change in changes)]


def over_seeds(found: list[dict], *keys: str) -> dict:
    """Returns one interval {mean, low, high} of measurements, over their seeds; all None where it was not measured."""
    intervals = []
    for interval in found:
        for key in keys:
            interval = interval.get(key, {})
        intervals.append({"mean": None, "low": None, "high": None} | interval)
    return pool_seeds(intervals)


def cost_cells(row: str, records: list[dict]) -> list:
    """Returns updates, seeds, videos, times of training, videos and measurement (per seed), and the hardware."""
    lengths = [r[length] for r in records for length in LENGTHS if length in r]
    videos, measuring = (sum(x["seconds"][k] for x in lengths) / len(records) / 60 for k in ("films", "evaluate"))
    training = records[0]["training"]
    minutes = sum(r["training"]["minutes"] for r in records) / len(records)
    trained = f"{minutes:.0f} min" + (" (shipped)" if "shipped" in training else "")
    counts = " + ".join(str(records[0][length]["videos"]) for length in LENGTHS if length in records[0])
    hardware = records[0]["hardware"]["name"]
    return [training["updates"], len(records), counts, trained, f"{videos:.0f} + {measuring:.0f} min", hardware]


def draw(root: Path) -> None:
    """Draws both pictures from the records of a project; one for which nothing is recorded is left as it is."""
    records, images = {row: found for row, found in read_rows(root).items() if found}, root / "docs/images"
    figures.draw(length_panels(records), images / "digits_table_length.png", "training lengths", columns=3)
    figures.draw(training_panels(records), images / "digits_table_training.png", "step", columns=5)


def length_panels(records: dict[str, list[dict]]) -> dict:
    """Returns {metric: {row: (x, y, None)}}: means of the videos' stretches, over seeds, at their middles."""
    panels = {}
    for metric in ALONG:
        for row, found in records.items():
            for length, windows in CURVE_WINDOWS.items():
                curves = [r[length]["curve"][metric] for r in found if "curve" in r.get(length, {})]
                if curves:
                    means = [_mean(column) for column in zip(*curves, strict=True)]
                    x = [(k + 0.5) * int(length.removesuffix("x")) / windows for k in range(windows)]
                    panels.setdefault(metric, {})[ROWS[row].title] = (x, means, None)
    return panels


def training_panels(records: dict[str, list[dict]]) -> dict:
    """Returns {name: {training: (steps, smoothed values, values)}} of the first seed; rows of one training share it."""
    panels, shown = {}, set()
    for row, found in records.items():
        curves, name = found[0]["training"].get("curves"), ROWS[row].training
        if curves is None or name in shown:
            continue
        shown.add(name)
        for metric in (*LOSSES, *NORMS):
            points = [(x, y) for x, y in zip(curves["step"], curves.get(metric, ()), strict=False) if y is not None]
            if points and not (metric == "loss" and "critic_loss" in curves):  # the same numbers
                steps, values = zip(*points, strict=True)
                panels.setdefault(metric, {})[name] = (steps, smooth(list(values)), values)
    return {metric: panels[metric] for metric in (*LOSSES, *NORMS) if metric in panels}


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


TABLES = {"objectives": quality, "objectives-cost": cost}

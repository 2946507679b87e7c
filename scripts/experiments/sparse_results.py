"""Shows the records of docs/results/sparse: tables and two pictures.

`sparse`: every row; `sparse-short`: a few, for the README; `sparse-gates`: what was to be reached.
docs/images/digits_sparse.png: digit and direction against the blocks that are read. docs/images/
digits_sparse_videos.png: one prompt by every row whose videos are there.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from scripts.experiments import figures
from scripts.experiments.objectives_results import over_seeds
from scripts.experiments.records import read_seeds
from scripts.experiments.sparse import BLOCKS, KEPT, LENGTHS, ROWS, TRAINED
from scripts.measure.markdown import mean_and_half, table_head, table_row
from utils.media.image import contact_sheet
from utils.media.mp4 import sample_frames

SHORT = ("tdm", "untrained_4", "tuned_4", "causal", "causal_history")
PROMPT = "a green three moves right"  # shown side by side
SHEET_FRAMES = 8
METRICS = ("digit", "direction", "colour")
LINES = {"untrained": "untrained", "joint": "trained from the teacher", "tuned": "trained from the dense student"}


def read_rows(root: Path) -> dict[str, list[dict]]:
    """Returns {row: its records, seed after seed}."""
    return {row: read_seeds(root / "docs/results/sparse", row, LENGTHS) for row in ROWS}


def value(rows: dict[str, list[dict]], row: str, metric: str, length: str = "1x") -> dict:
    """Returns one interval {mean, low, high} over the seeds; all None where it was not measured."""
    found = [record[length] for record in rows[row] if length in record]
    return over_seeds(found, "metrics", metric) if found else {"mean": None, "low": None, "high": None}


def quality(root: Path) -> str:
    """Returns every row at its lengths."""
    header = ["model", "blocks read", *(f"{metric} {length}" for length in LENGTHS for metric in METRICS), "updates"]
    rows = read_rows(root)

    def cells(row: str, records: list[dict]) -> list:
        found: list = []
        for length in LENGTHS:
            for metric in METRICS:
                shown = length in ROWS[row].lengths
                found.append(mean_and_half(value(rows, row, metric, length)) if shown else "")
        return [*found, records[0]["training"].get("updates", "shipped")]

    return fill(header, rows, cells)


def short(root: Path) -> str:
    """Returns what a mask costs, in a few rows."""
    rows = read_rows(root)
    metrics = METRICS[:2]

    def cells(row: str, records: list[dict]) -> list:
        return [mean_and_half(value(rows, row, metric)) for metric in metrics]

    header = ["model", "blocks read", *(f"{metric} 1x" for metric in metrics)]
    return fill(header, {row: rows[row] for row in SHORT}, cells)


def fill(header: list[str], rows: dict[str, list[dict]], numbers) -> str:
    """Returns a table with a line a row; numbers(row, records) -> its cells behind title and blocks."""
    titles = lambda row: [ROWS[row].title, share(row)]  # noqa: E731
    return "\n".join(figures.fill(header, rows, titles, "python scripts/digits_sparse.py --rows", numbers))


def share(row: str) -> str:
    """Returns how many of the blocks a row reads."""
    return "own chunk, 2 of 12 behind it" if row == "causal_history" else f"{ROWS[row].kept} of {BLOCKS}"


def gates(root: Path) -> str:
    """Returns what was to be reached, and the verdicts."""
    rows, lines = read_rows(root), table_head(["what", "wanted", "reached", "verdict"])
    for what, wanted, reached, passed in judge(rows):
        verdict = "not run" if passed is None else "reached" if passed else "missed"
        lines.append(table_row([what, wanted, "-" if reached is None else f"{reached:.3f}", verdict]))
    return "\n".join(lines)


def judge(rows: dict[str, list[dict]]):
    """Yields (what, wanted, reached, passed); None where a number is missing."""
    for metric in ("digit", "direction"):

        def mean(row: str, metric: str = metric):
            return value(rows, row, metric)["mean"]

        yield _at_least(f"TDM, 8 steps: {metric}", mean("tdm"), mean("teacher"), 0.06)
        for kind in ("joint", "tuned"):
            yield _at_least(f"TDM + ASA at 4 of 18 ({kind}): {metric}", mean(f"{kind}_4"), mean("tdm"), 0.05)
            for kept in (3, 2):
                what = f"TDM + ASA at {kept} of 18 ({kind}): {metric} won back"
                yield _won_back(what, mean(f"{kind}_{kept}"), mean(f"untrained_{kept}"), mean("tdm"))
        yield _at_least(f"causal, sparse history: {metric}", mean("causal_history"), mean("causal"), 0.02)
        yield _won_back(f"causal, 2 of 18: {metric} won back", mean("causal_sid"), mean("causal_all"), mean("causal"))


def _at_least(what: str, got, other, less: float):
    if got is None or other is None:
        return what, f"at most {less} less than without", got, None
    return what, f">= {other - less:.3f}", got, got >= other - less


def _won_back(what: str, trained, untrained, dense):
    if None in (trained, untrained, dense) or dense <= untrained:
        return what, ">= 0.5 of what was lost", None, None
    share = (trained - untrained) / (dense - untrained)
    return what, ">= 0.5 of what was lost", share, share >= 0.5


def draw(root: Path) -> None:
    """Draws both pictures from the records of a project; one for which nothing is there is left as it is."""
    rows = read_rows(root)
    draw_shares(root, rows)
    draw_videos(root, rows)


def draw_videos(root: Path, rows: dict[str, list[dict]]) -> None:
    """Draws the video of one prompt by each row whose videos are still where they were made."""
    found = {}
    for row, records in rows.items():
        if not records or "1x" not in records[0]:
            continue
        words = shlex.split(records[0]["1x"]["commands"][0])
        path = root / words[words.index("--output_folder") + 1] / f"{PROMPT}-0.mp4"
        if path.exists():
            found[ROWS[row].title] = sample_frames(path, SHEET_FRAMES)
    if found:
        path = root / "docs/images/digits_sparse_videos.png"
        contact_sheet(path, list(found.values()), list(found), columns=2, num_frames=SHEET_FRAMES, height=64)


def draw_shares(root: Path, rows: dict[str, list[dict]]) -> None:
    """Draws digit and direction against the blocks that are read, a line for untrained and each kind of training."""
    panels: dict = {}
    for metric in ("digit", "direction"):
        for group, title in LINES.items():
            counts = KEPT if group == "untrained" else TRAINED
            points = [(kept, value(rows, f"{group}_{kept}", metric)["mean"]) for kept in counts]
            points = [(kept, y) for kept, y in [*points, (BLOCKS, value(rows, "tdm", metric)["mean"])] if y is not None]
            if len(points) > 1:
                x, y = zip(*sorted(points), strict=True)
                panels.setdefault(metric, {})[title] = (x, y, None)
    figures.draw(panels, root / "docs/images/digits_sparse.png", f"blocks read, of {BLOCKS}", columns=2)


TABLES = {"sparse": quality, "sparse-short": short, "sparse-gates": gates}

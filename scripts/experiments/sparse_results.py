"""Shows the records of docs/results/sparse: tables `sparse` and `sparse-gates`, and docs/images/digits_sparse.png."""

from __future__ import annotations

from pathlib import Path

from scripts.experiments import figures
from scripts.experiments.objectives_results import over_seeds
from scripts.experiments.records import read_seeds
from scripts.experiments.sparse import BLOCKS, KEPT, LENGTHS, ROWS, TRAINED
from scripts.measure.markdown import mean_and_half, table_head, table_row

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
    rows = read_rows(root)
    header = ["model", "blocks read", *(f"{metric} {length}" for length in LENGTHS for metric in METRICS), "updates"]

    def cells(row: str, records: list[dict]) -> list:
        found: list = []
        for length in LENGTHS:
            for metric in METRICS:
                shown = length in ROWS[row].lengths
                found.append(mean_and_half(value(rows, row, metric, length)) if shown else "")
        return [*found, records[0]["training"].get("updates", "shipped")]

    return "\n".join(
        figures.fill(
            header, rows, lambda row: [ROWS[row].title, share(row)], "python scripts/digits_sparse.py --rows", cells
        )
    )


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
    """Draws digit and direction against the blocks that are read, a line for untrained and each kind of training."""
    rows, panels = read_rows(root), {}
    for metric in ("digit", "direction"):
        for group, title in LINES.items():
            counts = KEPT if group == "untrained" else TRAINED
            points = [(kept, value(rows, f"{group}_{kept}", metric)["mean"]) for kept in counts]
            points = [(kept, y) for kept, y in [*points, (BLOCKS, value(rows, "tdm", metric)["mean"])] if y is not None]
            if len(points) > 1:
                x, y = zip(*sorted(points), strict=True)
                panels.setdefault(metric, {})[title] = (x, y, None)
    figures.draw(panels, root / "docs/images/digits_sparse.png", f"blocks read, of {BLOCKS}", columns=2)


TABLES = {"sparse": quality, "sparse-gates": gates}

"""Draws the curves of the digits table from docs/results/table: `python scripts/experiments/curves.py`.

docs/images/digits_table_length.png: quality along videos of ten times the training length, a line per row.
docs/images/digits_table_training.png: what the trainings recorded, as scripts/plot_training.py draws a single one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.experiments.plan import CURVE_WINDOWS, RECORDS, ROOT, ROWS
from scripts.experiments.records import read_seeds
from scripts.plot_training import smooth

ALONG = ("digit", "colour", "direction", "consistency", "identity", "sharpness")
LOSSES = ("loss", "critic_loss", "generator_loss", "generator_dmd_gradient", "generator_sid_difference")
NORMS = ("grad_norm", "generator_grad_norm", "critic_grad_norm", "logit_real", "logit_fake")


def main(arguments: list[str] | None = None) -> int:
    """Draws both pictures; one for which nothing is recorded is left as it is. Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / RECORDS)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images")
    flags = parser.parse_args(arguments)
    records = {row: found for row in ROWS if (found := read_seeds(flags.records, row))}
    draw(length_panels(records), flags.output / "digits_table_length.png", "training lengths", columns=3)
    draw(training_panels(records), flags.output / "digits_table_training.png", "step", columns=5)
    return 0


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


def draw(panels: dict, path: Path, label: str, columns: int, looks: dict | None = None, scale: str = "linear") -> None:
    """Writes one picture with a panel per name; a line keeps its look in all of them.

    looks: {line: (colour, style)}, by default a colour each. scale: of the x axis, linear or log.
    """
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows + 1), squeeze=False)
    lines = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    looks, handles = looks or {line: (f"C{i}", "-") for i, line in enumerate(lines)}, {}
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        for line, (x, y, raw) in panel.items():
            colour, style = looks[line]
            if raw is not None:
                axis.plot(x, raw, alpha=0.25, color=colour)
            y = [float("nan") if v is None else v for v in y]
            handles[line] = axis.plot(x, y, style, color=colour)[0]
        axis.set_title(name)
        axis.set_xscale(scale)
        axis.set_xlabel(label)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())

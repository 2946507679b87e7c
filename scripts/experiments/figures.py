"""Draws recorded rows as tables and pictures; a row without a record says how to run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.measure.markdown import table_head, table_row
from utils.atomic import atomic_write


def fill(
    header: list[str], rows: dict[str, object], titles: Callable[[str], list], command: str, numbers: Callable
) -> list[str]:
    """Returns the lines of a table with a line a row.

    rows: {row: what is recorded of it, or None}. titles(row): its first cells. numbers(row, record): the others.
    command: runs a row, with its name behind.
    """
    lines = table_head(header)
    for row, record in rows.items():
        first = titles(row)
        empty = [f"not run: `{command} {row}`", *[""] * (len(header) - len(first) - 1)]
        lines.append(table_row([*first, *(numbers(row, record) if record else empty)]))
    return lines


def draw(panels: dict, path: Path, label: str, columns: int, styles: dict | None = None, scale: str = "linear") -> None:
    """Writes one picture with a panel per name; a line keeps its style in all of them.

    panels: {name: {line: (x, y, y before smoothing or None)}}; without any, the picture stays as it is. styles: {line:
    (colour, style)}, by default a colour each. scale: of the x axis, linear or log.
    """
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(max(8, 4 * columns), 3 * rows + 1), squeeze=False)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    styles, handles = styles or {name: (f"C{i}", "-") for i, name in enumerate(names)}, {}
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        for name, (x, y, raw) in panel.items():
            colour, style = styles[name]
            if raw is not None:
                axis.plot(x, raw, alpha=0.25, color=colour)
            y = [float("nan") if v is None else v for v in y]
            handles[name] = axis.plot(x, y, style, color=colour)[0]
        axis.set_title(title)
        axis.set_xscale(scale)
        axis.set_xlabel(label)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5 if columns > 2 else 3, fontsize="small")
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=80))
    plt.close(figure)

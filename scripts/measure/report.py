"""Prints and saves what scripts/evaluate.py measured: markdown tables next to the JSON of all numbers."""

from __future__ import annotations

import time

from scripts.measure.markdown import table_head, table_row

GATED = ("digit", "colour", "direction")
QUIET = ("noise", "black", "frozen", "shuffled")  # rows whose drift says nothing


def metric_table(rows) -> list[str]:
    """Returns markdown lines: mean +- half the width of the 95 % interval; drift = last minus first window of GATED."""
    from utils.digits.metrics import METRICS

    extra = [k for k in ("psnr", "psnr_foreground") if any(k in row for row in rows.values())]
    measured, sets = any(row.get("frechet") for row in rows.values()), any("looks" in row for row in rows.values())
    columns = [*METRICS, *extra, *["frechet"] * measured, *["looks"] * sets, "drift: " + " / ".join(GATED)]
    lines = table_head(["input", "clips", *columns])
    for name, row in rows.items():
        cells = [cell(row["metrics"][m], m in GATED) for m in METRICS] + [f"{row[k]:.1f}" for k in extra]
        if measured:
            cells.append(distance(row["frechet"]["all"]))
        if sets:
            cells.append(looks_cell(row.get("looks")))
        changes = [row["drift"][m]["change"]["mean"] for m in GATED]
        cells.append(" / ".join("-" if c is None else f"{round(c, 3) + 0.0:+.3f}" for c in changes))
        lines.append(table_row([name, row["clips"], *cells]))
    return ["", *lines]


def drift_table(rows) -> list[str]:
    """Returns markdown lines: windows of each row along the clip."""
    lines = table_head(["drift", "metric", "windows, first to last", "last - first [95 %]"])
    for name, row in rows.items():
        for metric in (*GATED, "identity", "area", "sharpness") if name not in QUIET else ():
            values, change = row["drift"][metric]["windows"], row["drift"][metric]["change"]
            text = " / ".join("-" if v is None else f"{v:.3f}" for v in values)
            lines.append(table_row([name, metric, text, signed_range(change)]))
    return ["", *lines]


def frechet_table(rows) -> list[str]:
    """Returns markdown lines: Frechet distance of all, first and last windows, and what as many real clips score."""
    kept = {name: row for name, row in rows.items() if row.get("frechet")}
    if not kept:
        return []
    lines = table_head(
        ["frechet", "clips", "all windows [95 %]", "first [95 %]", "last [95 %]", "as many real clips [range]"]
    )
    for name, row in kept.items():
        cells = [distance(row["frechet"][key]) for key in ("all", "first", "last", "floor")]
        lines.append(table_row([name, row["clips"], *cells]))
    return ["", *lines]


def verdict_table(verdicts) -> list[str]:
    """Returns markdown lines: what was required and whether it was met."""
    rows = [table_row([v["row"], v["what"], v["value"], v["limit"], "pass" if v["pass"] else "FAIL"]) for v in verdicts]
    return ["", *table_head(["row", "what", "value", "limit", "verdict"]), *rows] if rows else []


def cell(interval, with_error) -> str:
    """Returns `mean +-half`, or `-` where nothing was measured."""
    if interval["mean"] is None:
        return "-"
    half = (interval["high"] - interval["low"]) / 2
    return f"{interval['mean']:.3f}" + (f" +-{half:.3f}" if with_error else "")


def distance(interval) -> str:
    """Returns `mean [low, high]` of a Frechet distance."""
    if interval["mean"] is None:
        return "-"
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def looks_cell(interval: dict | None) -> str:
    """Returns `mean [low, high]` of `looks`, or `-` where it was not measured."""
    if interval is None or interval["mean"] is None:
        return "-"
    return f"{interval['mean']:.1f} [{interval['low']:.1f}, {interval['high']:.1f}]"


def signed_range(interval) -> str:
    """Returns `+mean [+low, +high]`."""
    if interval["mean"] is None:
        return "-"
    mean, low, high = (round(interval[k], 3) + 0.0 for k in ("mean", "low", "high"))  # + 0.0: no "-0.000"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def save(args, result: dict, lines: list[str], begin: float):
    """Prints the markdown lines and writes them next to the JSON of `result`."""
    from utils.atomic import atomic_write, write_json

    text = "\n".join([f"# {lines[0]}", "", f"`{args.command}`", *lines[1:], ""])
    facts = {"command": args.command, "seconds": round(time.time() - begin, 1)}
    write_json(args.output, facts | result)
    atomic_write(args.output.with_suffix(".md"), text.encode())
    print(text + f"\nsaved {args.output} and {args.output.with_suffix('.md')}")

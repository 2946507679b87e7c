"""Writes markdown tables: rows, headers, numbers with their intervals."""

from __future__ import annotations


def table_head(cells) -> list[str]:
    """Returns the two header lines of a markdown table."""
    return [table_row(cells), table_row(["---"] * len(cells))]


def table_row(cells) -> str:
    """Returns one markdown row."""
    return "| " + " | ".join(map(str, cells)) + " |"


def mean_and_half(interval: dict, digits: int = 3, sign: str = "") -> str:
    """Returns `mean +-half the width` of a 95 % interval."""
    if interval["mean"] is None:
        return "-"
    return f"{interval['mean']:{sign}.{digits}f} +-{(interval['high'] - interval['low']) / 2:.{digits}f}"

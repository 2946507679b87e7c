"""Markdown tables: rows, headers, numbers with their intervals."""

from __future__ import annotations


def head(cells) -> list[str]:
    """Returns the two header lines of a markdown table."""
    return [line(cells), line(["---"] * len(cells))]


def line(cells) -> str:
    """Returns one markdown row."""
    return "| " + " | ".join(map(str, cells)) + " |"


def with_half(interval: dict, digits: int = 3, sign: str = "") -> str:
    """Returns `mean +-half the width` of a 95 % interval."""
    if interval["mean"] is None:
        return "-"
    return f"{interval['mean']:{sign}.{digits}f} +-{(interval['high'] - interval['low']) / 2:.{digits}f}"

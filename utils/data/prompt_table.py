"""Prompts in a table or tree: JSON, JSONL, CSV, TSV and YAML as other trainers write them. One column is read."""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.data.text_file import TEXT_COLUMNS, check_prompt, text_lines
from utils.json_reader import get, parse_json, read_bytes, read_json, shown

SCHEDULE_KEYS = {"prompts", "end_frame", "end_pixel_frame", "end"}
LARGEST_YAML = 8 << 20  # bytes; its reader takes minutes for more
logger = logging.getLogger(__name__)


def is_table(path: str | Path) -> bool:
    """True for a file whose ending says that it is more than plain text."""
    return Path(path).suffix.lower() in READERS


def table_prompts(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (number of the row from 1, checked prompt or '') of a table.

    A row is a text, or has one column named prompt, caption or text. Errors: ValueError naming file and row.
    """
    column = ""
    for number, (where, row) in enumerate(READERS[Path(path).suffix.lower()](Path(path)), 1):
        if isinstance(row, dict):
            if not column:
                column = find_column(list(row), where)
                if others := [str(name) for name in row if name != column]:
                    logger.info("%s: its prompts are %r; not read: %s", path, column, ", ".join(others))
            row = get(row, column, str, where)
        elif not isinstance(row, str):
            raise ValueError(f"{where} is {shown(row)}; it must be a text, or an object with one")
        yield number, check_prompt(row, where)


def find_column(names: Sequence[Any], where: str) -> str:
    """Returns the name, in any case, that holds the prompts. Errors: ValueError starting with `where`."""
    allowed = f"{', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
    if schedule := SCHEDULE_KEYS.intersection(map(str, names)):
        raise ValueError(
            f"{where} has {sorted(schedule)[0]!r} like a prompt schedule; write those as .jsonl, one video per line, "
            "and give them to inference.py --data_path"
        )
    found = [name for name in names if str(name).strip().lower() in TEXT_COLUMNS]
    if len(found) != 1:
        have = ", ".join(map(str, names))
        what = (
            f"the columns {' and '.join(found)}; keep one of them" if found else f"no column {allowed} (only: {have})"
        )
        raise ValueError(f"{where} has {what[:300]}")
    return found[0]


def _json_rows(path: Path) -> Iterable[tuple[str, Any]]:
    return _tree_rows(path, read_json(path, (list, dict)))


def _yaml_rows(path: Path) -> Iterable[tuple[str, Any]]:
    import yaml

    try:  # of the base loader every value is a text: no dates, no truth values, no objects
        tree = yaml.load(read_bytes(path, LARGEST_YAML), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(tree, list | dict):
        raise ValueError(f"{path} holds {shown(tree)}; it must be a list of prompts")
    return _tree_rows(path, tree)


def _tree_rows(path: Path, tree: list | dict) -> Iterable[tuple[str, Any]]:
    """Returns the rows of a list, of an object that holds one list, or of an object that is a row itself."""
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list)]
        if len(lists) > 1 or (not lists and not any(str(key).lower() in TEXT_COLUMNS for key in tree)):
            raise ValueError(f"{path} is an object with {len(lists)} lists; write one list of prompts")
        tree = lists[0] if lists else [tree]
    return ((f"{path}, row {number}", row) for number, row in enumerate(tree, 1))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, text in text_lines(path):
        where = f"{path}, line {number}"
        yield where, parse_json(text, where, (dict, str)) if text.strip() else ""


def _cells(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a CSV or TSV file by the names in its first line; cells may hold line breaks in quotes."""
    lines = (f"{text}\n" for _, text in text_lines(path))
    head = next((line for line in lines if line.strip()), "")
    tabs = path.suffix.lower() == ".tsv"
    separator = "\t" if tabs else next((mark for mark in ",;\t" if mark in head), ",")
    rows = csv.reader(itertools.chain([head], lines), delimiter=separator, strict=True)
    try:
        names = next(rows, [])
        column = find_column(names, f"{path}: its first line")
        for cells in rows:
            where = f"{path}, line {rows.line_num}"
            if cells and len(cells) != len(names):
                hint = "put a text with the separator in it into quotes"
                raise ValueError(f"{where} has {len(cells)} cells, the first line {len(names)}; {hint}")
            yield where, dict(zip(names, cells, strict=True)) if cells else {column: ""}
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: {error}; write cells with quotes in them by a CSV writer"
        ) from error


READERS = {
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _cells,
    ".tsv": _cells,
    ".yaml": _yaml_rows,
    ".yml": _yaml_rows,
}

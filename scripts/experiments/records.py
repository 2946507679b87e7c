"""Reads and writes the records of experiments: one JSON a row (and seed), seeds put together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from utils.json_reader import read_json

STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided quantiles, by number of seeds


def read_record(path: Path) -> dict | None:
    """Returns the JSON of a file, or None if there is no file."""
    return read_json(path) if path.exists() else None


def merge_part(record: dict | None, part: str, content: dict, parts: Iterable[str]) -> dict:
    """Returns {part: content} with the other parts of a record that were measured on the same weights.

    parts: all that the record may hold, in order.
    """
    weights = content["facts"]["weights"]
    same = {p: record[p] for p in parts if record and p in record and record[p]["facts"]["weights"] == weights}
    found = {**same, part: content}
    return {p: found[p] for p in parts if p in found}


def read_seeds(folder: Path, row: str, parts: Iterable[str]) -> list[dict]:
    """Returns the records of a row, seed after seed; only those that were trained and measured like the first."""
    paths = sorted(folder.glob(f"{row}_seed*.json"), key=lambda p: int(p.stem.rpartition("seed")[2]))
    records = [read_json(path) for path in paths]
    sizes = [(r["training"].get("steps"), *(r[p]["videos"] for p in parts if p in r)) for r in records]
    return [record for record, size in zip(records, sizes, strict=True) if size == sizes[0]]


def pool_seeds(intervals: list[dict]) -> dict:
    """Returns {mean, low, high} of one number over seeds; one seed's interval (over videos) stays as it is.

    Several: mean of the means; half the width is Student's over seeds, at least what the videos alone leave open.
    """
    if len(intervals) == 1 or any(i["mean"] is None for i in intervals):
        return intervals[0]
    means, count = [i["mean"] for i in intervals], len(intervals)
    videos = statistics.mean((i["high"] - i["low"]) / 2 for i in intervals) / math.sqrt(count)
    seeds = STUDENT_95.get(count, STUDENT_95[5]) * statistics.stdev(means) / math.sqrt(count)
    mean, half = statistics.mean(means), max(videos, seeds)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def video_seconds(folder: Path) -> float:
    """Returns how long the videos of a folder took, however often the run was interrupted.

    Each batch writes its own time into the JSON of each of its videos.
    """
    sidecars = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return sum({sidecar["seconds"]["total"] for sidecar in sidecars})


def hardware() -> dict:
    """Returns the device, cores and torch that the times of a record belong to; one thread a process."""
    import torch

    from scripts.bench.device import device_facts

    facts = device_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {name: facts[name] for name in ("name", "cores", "torch", "load average")}

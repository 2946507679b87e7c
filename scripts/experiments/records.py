"""The records of the digits tables: what a run folder tells, one JSON a row and seed, and seeds put together."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from scripts.experiments.plan import LENGTHS
from scripts.plot_training import read_metrics
from utils.atomic import write_json

WEIGHTS = ("export/transformer/diffusion_pytorch_model.safetensors", "export/transformer/config.json")
NO_CURVE = ("step", "seconds", "sigma", "generator_sigma", "critic_sigma")
STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided quantiles, by number of seeds


def unfinished(run: Path, steps: int) -> str:
    """Returns what a training lacks to be one of `steps` steps that ended and exported, or "".

    The last line of metrics.jsonl stands at the last multiple of `log_every`, which the gap of its lines tells.
    """
    if not (run / "metrics.jsonl").exists():
        return f"{run} holds no metrics.jsonl"
    reached = [row["step"] for row in read_metrics(run)]
    every = reached[-1] - reached[-2] if len(reached) > 1 else steps
    if not reached or not 0 < steps - reached[-1] <= every:
        return f"{run} has reached step {reached[-1] if reached else 0} of {steps}"
    missing = [name for name in WEIGHTS if not (run / name).exists()]
    return f"{run} lacks {missing[0]}" if missing else ""


def training_story(run: Path) -> dict:
    """Returns {minutes, curves} of a run: the time it trained over all its resumes, and every recorded number."""
    rows = read_metrics(run)
    names = {name for row in rows for name in row} - set(NO_CURVE)
    curves = {name: [_short(row.get(name)) for row in rows] for name in sorted(names)}
    return {"minutes": rows[-1]["seconds"] / 60, "curves": {"step": [row["step"] for row in rows], **curves}}


def _short(value):
    """Five digits are enough for a picture."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def weights_file(path: Path) -> Path:
    """Returns the file that holds the weights of a transformer's folder; a file is that itself."""
    return path / Path(WEIGHTS[0]).name if path.is_dir() or not path.suffix else path


def video_seconds(folder: Path) -> float:
    """Returns how long the videos of a folder took, however often the run was interrupted.

    Each batch writes its own time into the JSON of each of its videos.
    """
    sidecars = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sum({sidecar["seconds"]["total"] for sidecar in sidecars})


def measured(path: Path) -> dict:
    """Returns the one row of a result of scripts/evaluate.py: {videos, pixel_frames, metrics, drift, frechet}."""
    result = json.loads(path.read_text())
    (row,) = result["rows"].values()
    found = {"videos": row["clips"], "pixel_frames": result["frames"], "seconds": result["seconds"]}
    return found | {name: row[name] for name in ("metrics", "drift", "frechet") if name in row}


def record_path(folder: Path, row: str, seed: int) -> Path:
    """Returns where the record of a row and seed stands."""
    return folder / f"{row}_seed{seed}.json"


def read_record(folder: Path, row: str, seed: int) -> dict | None:
    """Returns a record, or None if there is none."""
    return read_whole(record_path(folder, row, seed))


def read_whole(path: Path) -> dict | None:
    """Returns the JSON of a file, or None if there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def write_length(folder: Path, row: str, seed: int, length: str, head: dict, content: dict) -> None:
    """Puts one length into a record. Another length stays if it was measured on the same weights."""
    before = read_record(folder, row, seed) or {}
    others = {k: v for k, v in before.items() if k in LENGTHS and k != length}
    kept = {k: v for k, v in others.items() if v["facts"]["weights"] == content["facts"]["weights"]}
    lengths = {name: {**kept, length: content}[name] for name in LENGTHS if name in {**kept, length: content}}
    write_json(record_path(folder, row, seed), {"row": row, "seed": seed, **head, **lengths})


def read_seeds(folder: Path, row: str) -> list[dict]:
    """Returns the records of a row, seed after seed; only those that were trained and measured like the first."""
    paths = sorted(folder.glob(f"{row}_seed*.json"), key=lambda p: int(p.stem.rpartition("seed")[2]))
    records = [json.loads(path.read_text()) for path in paths]
    return [r for r in records if _likeness(r) == _likeness(records[0])]


def _likeness(record: dict) -> tuple:
    return record["training"].get("steps"), *(record[k]["videos"] for k in LENGTHS if k in record)


def pooled(intervals: list[dict]) -> dict:
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


def hardware() -> dict:
    """Returns what the times of a record are worth: device, cores, torch; one thread a process."""
    import torch

    from scripts.bench.device import device_facts

    facts = device_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {name: facts[name] for name in ("name", "cores", "torch", "load average")}

"""Reads run folders of train.py: recorded numbers, whether the training has ended, its exported weights."""

from __future__ import annotations

import math
from pathlib import Path

from utils.atomic import read_rows

WEIGHTS = ("export/transformer/diffusion_pytorch_model.safetensors", "export/transformer/config.json")
NO_CURVE = ("step", "seconds", "sigma", "generator_sigma", "critic_sigma")
SMOOTHED = 15  # recorded points per average


def read_metrics(run: Path) -> list[dict]:
    """Returns the lines of `<run>/metrics.jsonl` by step, [] without the file; lines that are damaged are left out."""
    path, latest = run / "metrics.jsonl", {}
    for row in read_rows(path)[0] if path.exists() else ():
        if isinstance(row.get("step"), int):
            latest[row["step"]] = row  # a resumed run repeats what came after its checkpoint
    return [latest[step] for step in sorted(latest)]


def smooth(values: list[float]) -> list[float]:
    """Returns the average of each value and those before it, SMOOTHED at most."""
    starts = [max(0, i - SMOOTHED + 1) for i in range(len(values))]
    return [sum(values[a : i + 1]) / (i + 1 - a) for i, a in enumerate(starts)]


def why_unfinished(run: Path, steps: int) -> str:
    """Returns what a training lacks to be one of `steps` steps that ended and exported, or "".

    The last line of metrics.jsonl stands at the last multiple of `log_every`, which the gap between its lines shows.
    """
    if not (run / "metrics.jsonl").exists():
        return f"{run} holds no metrics.jsonl"
    reached = [row["step"] for row in read_metrics(run)]
    every = reached[-1] - reached[-2] if len(reached) > 1 else steps
    if not reached or not 0 < steps - reached[-1] <= every:
        return f"{run} has reached step {reached[-1] if reached else 0} of {steps}"
    missing = [name for name in WEIGHTS if not (run / name).exists()]
    return f"{run} has no {missing[0]}" if missing else ""


def read_curves(run: Path) -> dict:
    """Returns {minutes, curves} of a run: the time it trained over all its resumes, and every recorded number."""
    rows = read_metrics(run)
    names = {name for row in rows for name in row} - set(NO_CURVE)
    curves = {name: [_rounded(row.get(name)) for row in rows] for name in sorted(names)}
    return {"minutes": rows[-1]["seconds"] / 60, "curves": {"step": [row["step"] for row in rows], **curves}}


def _rounded(value):
    """Returns five digits: enough for a picture."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def weights_file(path: Path) -> Path:
    """Returns the file that holds the weights of a transformer's folder; a file is that itself."""
    return path / Path(WEIGHTS[0]).name if path.is_dir() or not path.suffix else path

"""What looks on while a run trains: metrics file, progress bar, export of the result."""

from __future__ import annotations

import json
import math
from pathlib import Path

from utils.log import progress


class Callback:
    """Does nothing; the base of those that do."""

    def start(self, step: int, total: int) -> None:
        """Called before the first step of this process."""

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        """Called after each step with tensors."""

    def finish(self, method, seconds: float) -> None:
        """Called after the last step."""


class Metrics(Callback):
    """Appends a line to `<run>/metrics.jsonl` every `every` steps and drives the bar; stops on a NaN loss."""

    def __init__(self, run: str | Path, every: int, method):
        self.path, self.every, self.method = Path(run) / "metrics.jsonl", every, method

    def start(self, step: int, total: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bar = progress(total=total, label=self.path.parent.name, unit="step")
        self.bar.update(step)

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        self.bar.update()
        if step % self.every:
            return
        row = {"step": step, "seconds": round(seconds, 2), **{k: float(v) for k, v in metrics.items()}}
        if not math.isfinite(row["loss"]):
            prompts = getattr(self.method, "last_prompts", ())
            raise ValueError(f"the loss is {row['loss']} at step {step}; prompts: {list(prompts)[:4]}")
        self.bar.set_postfix(loss=f"{row['loss']:.4f}")
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, method, seconds: float) -> None:
        self.bar.close()


class Export(Callback):
    """Writes the trained model into the run folder when training ends."""

    def __init__(self, run: str | Path):
        self.run = Path(run)

    def finish(self, method, seconds: float) -> None:
        method.export(self.run / "export")

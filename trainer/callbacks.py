"""What looks on while a run trains: metrics file, progress bar, export of the result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from trainer.checkpoint import set_aside
from utils.atomic import atomic_write
from utils.log import progress


class Callback:
    """Does nothing; the base of those that do."""

    def start(self, step: int, total: int) -> None:
        """Called before the first step of this process."""

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        """Called after each step with tensors."""

    def before_save(self) -> None:
        """Called before a checkpoint is written; an exception prevents it."""

    def finish(self, method, seconds: float) -> None:
        """Called after the last step."""


class Metrics(Callback):
    """Appends a line to `<run>/metrics.jsonl` every `every` steps and drives the bar; stops on a NaN loss.

    Losses are read (which waits for the device) when a line is due and before a checkpoint, but all of them:
    a NaN is reported with the step and the prompts that made it, and never saved.
    """

    def __init__(self, run: str | Path, every: int, method):
        self.path, self.every, self.method = Path(run) / "metrics.jsonl", every, method
        self._unread: list[tuple[int, torch.Tensor, tuple]] = []

    def start(self, step: int, total: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._keep_before(start=step)
        self.bar = progress(total=total, label=self.path.parent.name, unit="step")
        self.bar.update(step)

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        self.bar.update()
        self._unread.append((step, metrics["loss"], tuple(getattr(self.method, "last_prompts", ()))))
        if step % self.every:
            return
        self.before_save()
        row = {"step": step, "seconds": round(seconds, 2), **{k: float(v) for k, v in metrics.items()}}
        self.bar.set_postfix(loss=f"{row['loss']:.4f}")
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def before_save(self) -> None:
        """Raises ValueError for the first loss since the last call that is not finite."""
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for _, loss, _ in unread]).tolist() if unread else []
        for (step, _, prompts), loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at step {step}; prompts: {list(prompts)[:4]}. "
                    "Earlier checkpoints are kept; lower the learning rate or look at these samples"
                )

    def finish(self, method, seconds: float) -> None:
        self.bar.close()

    def _keep_before(self, start: int) -> None:
        """Drops the lines of steps that this run does again (and one that a kill cut off)."""
        if not self.path.exists():
            return
        if not start:
            return set_aside(self.path)
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
        atomic_write(self.path, "".join(f"{line}\n" for line in kept).encode())


class Export(Callback):
    """Writes the trained model into the run folder when training ends."""

    def __init__(self, run: str | Path):
        self.run = Path(run)

    def finish(self, method, seconds: float) -> None:
        method.export(self.run / "export")

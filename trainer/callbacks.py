"""Callbacks: metrics file and trackers, progress bar, export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from trainer.checkpoint.folder import set_aside
from trainer.protocol import Callback, Method
from utils.atomic import atomic_write, read_rows
from utils.log import StepProgress
from utils.parallel import ranks
from utils.parallel.fsdp import is_sharded

logger = logging.getLogger(__name__)


class NotFinite(ValueError):
    """A loss or gradient that is NaN or infinite: the run stops and saves nothing."""


class Metrics(Callback):
    """Appends a line to `<run>/metrics.jsonl` every `every` steps and drives bar and trackers; stops on a NaN loss.

    Losses and gradient norms are read (which waits for the device) when a line is due and before a checkpoint,
    but all of them: a NaN is reported with the step and the prompts that made it, and never saved. All ranks
    read theirs together, and all stop if one rank's is not finite. File, bar and trackers share the values that
    were read: means over the ranks, shown by the first.
    """

    def __init__(self, run: str | Path, every: int, method: Method, trackers=()):
        self.path, self.every, self.method, self.trackers = Path(run) / "metrics.jsonl", every, method, trackers
        self._unread: list[Watched] = []

    def start(self, step: int, total: int) -> None:
        if ranks.rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep_before(start=step)
        for tracker in self.trackers:
            tracker.start(step)
        self.bar = StepProgress(step, total, label=self.path.parent.name)

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        self.bar.step()
        self._unread.append(watch(step, metrics, self.method))
        if step % self.every:
            return
        row = {"step": step, "seconds": round(seconds, 2), **self._read(metrics)}
        self.bar.show(row["loss"])
        if ranks.rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log(row)

    def before_save(self) -> None:
        """Raises NotFinite on all ranks for a loss or gradient norm since the last call that is not finite."""
        self._read({})

    def _read(self, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        """Returns the means of these metrics over the ranks; one transfer brings them and what is unread."""
        unread, self._unread = self._unread, []
        values = check_numbers(unread, list(metrics.values()))
        return dict(zip(metrics, ranks.mean(values), strict=True))

    def finish(self, method, seconds: float) -> None:
        self.stop()

    def stop(self) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.finish()

    def _keep_before(self, start: int) -> None:
        """Drops the lines of steps that this run does again (and one that a kill cut off)."""
        if not self.path.exists():
            return
        if not start:
            return set_aside(self.path)
        rows, bad = read_rows(self.path)
        kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] < start]
        if bad:
            logger.warning("%s has %d lines that cannot be read; they are left out", self.path, bad)
        atomic_write(self.path, "".join(f"{json.dumps(row)}\n" for row in kept).encode())


Watched = tuple[int, dict[str, torch.Tensor], dict[str, tuple]]  # step, what must be finite, prompts by start of name


def watch(step: int, metrics: dict[str, torch.Tensor], method: Method) -> Watched:
    """Returns what of a step's metrics must be finite, not read yet."""
    watched = {name: value for name, value in metrics.items() if name.endswith(("loss", "grad_norm"))}
    return step, watched, dict(getattr(method, "last_prompts", {}))


def check_numbers(unread: Sequence[Watched], others: Sequence[torch.Tensor] = ()) -> list[float]:
    """Returns the numbers of `others`; one transfer brings them and what is unread.

    Errors: NotFinite, on all ranks, for the first unread number that is not finite.
    """
    flat = [(step, name, value, prompts) for step, row, prompts in unread for name, value in row.items()]
    values = _transfer([value for _, _, value, _ in flat] + list(others))
    message = None
    for (step, name, _, prompts), value in zip(flat, values, strict=False):
        if not math.isfinite(value):
            message = f"the {name.replace('grad_norm', 'gradient norm')} is {value} at step {step}; "
            seen = next((p for start, p in prompts.items() if name.startswith(start)), ())
            message += f"prompts: {list(seen)}. Lower the learning rate or look at these samples"
            break
    if message := ranks.first_text(message):
        raise NotFinite(message)
    return values[len(flat) :]


def check_weights(state, done: int) -> None:
    """Raises NotFinite, on all ranks, if a tensor of a training's state is not finite after `done` steps."""
    tensors = [(name, value) for name, value in _tensors(state) if value.is_floating_point() and value.numel()]
    good = _transfer([(value.to_local() if is_sharded(value) else value).isfinite().all() for _, value in tensors])
    name = next((name for (name, _), fine in zip(tensors, good, strict=True) if not fine), None)
    message = name and f"{name} is not finite after step {done - 1}; nothing is saved. Lower the learning rate"
    if message := ranks.first_text(message):
        raise NotFinite(message)


def _tensors(state, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    inner = state if isinstance(state, dict) else dict(enumerate(state)) if isinstance(state, list | tuple) else {}
    for key, value in inner.items():
        yield from _tensors(value, f"{name}/{key}".lstrip("/"))
    if isinstance(state, torch.Tensor):
        yield name, state.detach()


def _transfer(values: list[torch.Tensor]) -> list[float]:
    """Returns the numbers of scalar tensors on any devices, all brought over at once."""
    if not values:
        return []
    return torch.stack([v.detach().to(values[0].device, torch.float64).reshape(()) for v in values]).tolist()


class Export(Callback):
    """Writes the trained model into the run folder when training ends."""

    def __init__(self, run: str | Path):
        self.run = Path(run)

    def start(self, step: int, total: int) -> None:
        if not step and not ranks.rank():
            set_aside(self.run / "export")  # of an earlier run that this one does not go on with

    def finish(self, method, seconds: float) -> None:
        method.export(self.run / "export")

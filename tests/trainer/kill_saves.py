"""Saves, is killed, loads: twenty times. `python -m tests.trainer.kill_saves RUN` prints (newest step, kills that hit).

One process loads torch; its forked children save in a loop, so that a kill costs no start.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from trainer.checkpoint import dcp  # noqa: F401 (here, so that no child spends its life importing)
from trainer.checkpoint.folder import Checkpoint, CheckpointConfig

KILLS = 20


def saver(run: str) -> Checkpoint:
    return Checkpoint(run, CheckpointConfig(every=1, keep=2))


def state(step: int) -> dict:
    return {"w": torch.full((200_000,), float(step)), "step": step}


def start(run: str, step: int) -> int:
    """Returns the process of a child that saves one step after another, from this one on."""
    child = os.fork()
    if child:
        return child
    try:
        kept = saver(run)
        for number in range(step, 1_000_000):
            kept.save(state(number), number)
    finally:
        os._exit(1)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the writer ended by itself"


def load(run: str) -> int:
    """Returns the newest step, after checking that it holds what was saved."""
    found = saver(run).find()
    loaded = found.read(state(0))
    assert loaded["step"] == found.step and bool((loaded["w"] == found.step).all()), found.step
    return found.step


def main(run: str) -> None:
    """Measures how long a save takes here, then kills at random moments of about as long."""
    torch.set_num_threads(1)
    folder, draw, begin = Path(run, "checkpoints"), random.Random(0), time.monotonic()
    child = start(run, 1)
    while not list(folder.glob("step_???????")) and time.monotonic() < begin + 60:
        time.sleep(0.001)
    took = min(1.0, time.monotonic() - begin)
    kill(child)
    reached, half = load(run), 0
    for _ in range(KILLS):
        child = start(run, reached + 1)
        time.sleep(draw.uniform(0, 1.5 * took))
        kill(child)
        half += bool(list(folder.glob("*.tmp")))
        step = load(run)
        assert step >= reached, "a step that was whole is gone"
        took = min(1.0, 1.3 * took) if step == reached else took  # the machine is busier than it was
        reached = step
    print(reached, half)


if __name__ == "__main__":
    main(sys.argv[1])

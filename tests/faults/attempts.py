"""Runs attempts on the real doors: each in a process of its own, forked from one that has loaded the libraries.

A fresh interpreter would spend four seconds on imports; a fork has them. Each attempt has its own working folder (with
links to assets, configs and prompts), session and limits, so none can write into the checkout or outlive its time.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.architecture.source import ROOT
from tests.faults.judge import SECONDS, Answer, Attempt, Fault, harm

LINKED = ("assets", "configs", "prompts")
ADDRESS_SPACE = 8 << 30  # bytes: an input that asks for more meets the limit and not the machine


def preload() -> None:
    """Imports what the doors import, for all forks. One thread: a pool of threads does not survive a fork."""
    for name in ("torch", "av", "PIL.Image", "safetensors.torch", "yaml", "lmdb", "transformers", "diffusers"):
        importlib.import_module(name)
    for name in ("inference", "train", "pipeline.batch.run", "trainer.build", "wan.backbone", "wan.checkpoint.library"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


@dataclass
class Running:
    """An attempt whose process has not ended."""

    fault: Fault
    attempt: Attempt
    place: Path  # its working folder
    before: bytes | None  # the content of `attempt.untouched`
    pid: int  # of the process, and of its process group
    output: int  # the reading end of its stdout and stderr
    begun: float = field(default_factory=time.monotonic)
    said: bytearray = field(default_factory=bytearray)

    def end(self, seconds: float) -> Answer | None:
        """Returns what the door did, None while it runs; after `seconds` it is killed."""
        took = time.monotonic() - self.begun
        self.read()
        ended, code = os.waitpid(self.pid, os.WNOHANG)
        if not ended and took < seconds:
            return None
        if not ended:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.read()
        os.close(self.output)
        status = os.waitstatus_to_exitcode(code) if ended else None
        answer = Answer(status, self.said.decode(errors="replace"), took, harm(self.attempt, self.before))
        shutil.rmtree(self.place, ignore_errors=True)
        return answer

    def read(self) -> None:
        """Takes what the process wrote, so that a full pipe cannot stop it."""
        while self.output in select.select([self.output], [], [], 0)[0] and (data := os.read(self.output, 1 << 16)):
            self.said += data


def run_all(
    faults: Iterable[Fault], folder: Path, workers: int, seconds: float = SECONDS
) -> Iterator[tuple[Fault, Attempt, Answer]]:
    """Yields each fault with what its door did, as they end; `workers` at a time."""
    waiting, number = iter(faults), 0
    running: list[Running] = []
    while True:
        while len(running) < workers and (fault := next(waiting, None)) is not None:
            running.append(start(fault, folder / f"{number:04d}"))
            number += 1
        if not running:
            return
        time.sleep(0.02)
        for one in list(running):
            if answer := one.end(seconds):
                running.remove(one)
                yield one.fault, one.attempt, answer


def run_one(fault: Fault, folder: Path, seconds: float = SECONDS) -> tuple[Attempt, Answer]:
    """Returns the attempt of one fault and what its door did."""
    return next(run_all([fault], folder, 1, seconds))[1:]


def prepare(fault: Fault, place: Path) -> Attempt:
    """Makes the working folder and the bad input in it."""
    inputs = place / "in"
    inputs.mkdir(parents=True)
    for name in LINKED:
        (place / name).symlink_to(ROOT / name)
    return fault.make(inputs)


def start(fault: Fault, place: Path) -> Running:
    """Makes the bad input and forks a process that runs the door in `place`."""
    attempt = prepare(fault, place)
    before = attempt.untouched.read_bytes() if attempt.untouched else None
    reading, writing = os.pipe()  # no file: a limit of file sizes would cut what is said
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Running(fault, attempt, place, before, pid, reading)
    status = 1
    try:
        os.setsid()
        faulthandler.disable()  # a test runner's would print its own stack
        os.chdir(place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        status = call(fault.door, attempt, place / "home")
    finally:  # nothing of the parent's stack may run here
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def call(door: str, attempt: Attempt, home: Path) -> int:
    """Runs the door in this process under the attempt's limits and returns its exit status. home: of its user."""
    os.environ.update(HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"))
    for limit, value in ({"RLIMIT_AS": ADDRESS_SPACE, "RLIMIT_CORE": 0} | attempt.limits).items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    sys.argv = [str(ROOT / door), *attempt.arguments]
    spec = importlib.util.spec_from_file_location("door_under_test", ROOT / door)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        return int(module.main(attempt.arguments) or 0)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)

"""Runs jobs of an experiment, some at a time: each a chain of commands with a log of its own.

A job that fails is reported and the others go on; an interrupt ends the running commands (SIGTERM, so that a training
may save), and the same call later goes on, because every command resumes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.log import progress

logger = logging.getLogger(__name__)
TAIL = 15  # lines of a failed job's log that are shown
POLL, SHOWN = 0.05, 5.0  # seconds between polls of the processes, and between notes on the bar
PATIENCE = 120.0  # seconds that a command gets to end after SIGTERM


@dataclass(frozen=True)
class Command:
    """Holds a Python script with its arguments. makes: a file it must leave; then status 1 is a verdict, no failure."""

    words: tuple[str, ...]
    makes: Path | None = None

    @property
    def text(self) -> str:
        """The line a reader can type."""
        return " ".join(["python", *(f"'{w}'" if set(w) & set(" []{}*") else w for w in self.words)])


@dataclass
class Job:
    """Holds commands in order, made when the job starts; a ValueError of `begin` or `finish` is the job's failure.

    commands: makes them and changes nothing. begin: comes before the first. finish: comes after the last.
    needs: names of jobs that come first. note: how far it is, for the bar.
    """

    name: str
    commands: Callable[[], Iterable[Command]]
    begin: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None
    needs: tuple[str, ...] = ()
    note: Callable[[], str] = lambda: ""


class Active:
    """Holds a job that is running: its process, its log, and a lock that its process holds as long as it lives."""

    def __init__(self, job: Job, root: Path, logs: Path):
        """Errors: ValueError if a command cannot be made, or another process is at the same job."""
        self.job, self.root = job, root
        stem = job.name.replace("/", "_")
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{stem}.log"
        self.lock = _lock(logs / f"{stem}.lock", job.name)
        try:
            job.begin()
            self.commands = list(job.commands())
        except (ValueError, OSError):
            self.lock.close()
            raise
        self.file = self.log.open("ab")
        self.command: Command | None = None
        self.process: subprocess.Popen | None = None

    def advance(self) -> bool:
        """Starts the next command when one has ended; True when all have. Errors: ValueError for a failure."""
        if self.process is not None:
            if self.process.poll() is None:
                return False
            self._check_status()
        if not self.commands:
            self.job.finish()
            return True
        self._start(self.commands.pop(0))
        return False

    def _start(self, command: Command) -> None:
        if command.makes is not None:
            command.makes.parent.mkdir(parents=True, exist_ok=True)
            command.makes.unlink(missing_ok=True)
        self.command = command
        self.file.write(f"$ {command.text}\n".encode())
        self.file.flush()
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *command.words],
            cwd=self.root,
            env=os.environ | one_thread,
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then ends the others
            pass_fds=(self.lock.fileno(),),
        )

    def _check_status(self) -> None:
        status, made = self.process.returncode, self.command.makes
        if status == 0 if made is None else status in (0, 1) and made.exists():
            return
        lines = self.log.read_text(errors="replace").splitlines()
        start = max((i for i, text in enumerate(lines) if text.startswith("$ ")), default=0)
        tail = "\n".join(f"    {text}" for text in lines[start:][-TAIL:])
        raise ValueError(f"ended with status {status}; the end of {self.log}:\n{tail}")

    def close(self) -> None:
        """Releases log and lock."""
        self.file.close()
        self.lock.close()


def _lock(path: Path, name: str):
    """Returns an open file with a lock. The job's processes inherit it: it is held until the last of them has ended,
    also when this process was killed and left them behind."""
    import fcntl

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process is at {name} ({path} is locked); wait for it, then start again") from None
    return file


def run_jobs(jobs: list[Job], workers: int, root: Path, logs: Path) -> dict[str, str]:
    """Runs the jobs, at most `workers` at once; returns {name: ""} or {name: why it failed}.

    Errors: KeyboardInterrupt after every running command has ended.
    """
    waiting, running, ended, shown = list(jobs), [], {}, 0.0
    assert {n for job in jobs for n in job.needs} <= {job.name for job in jobs}, "a job needs what nobody does"
    with progress(total=len(jobs), label="jobs", unit="job") as bar, _stopping(running):
        while waiting or running:
            _drop_blocked(waiting, ended, bar)
            for job in [j for j in waiting if all(ended.get(n) == "" for n in j.needs)]:
                if len(running) < workers:
                    waiting.remove(job)
                    _begin(job, root, logs, running, ended, bar)
            for active in list(running):
                _advance(active, running, ended, bar)
            if time.monotonic() - shown > SHOWN:
                shown = time.monotonic()
                bar.set_postfix_str(", ".join(f"{a.job.name} {a.job.note()}".strip() for a in running))
            time.sleep(POLL)
    return ended


def _begin(job, root, logs, running, ended, bar) -> None:
    try:
        running.append(Active(job, root, logs))
        logger.info("%s begins; %s", job.name, running[-1].log)
    except (ValueError, OSError) as error:
        _end(job, str(error), ended, bar)


def _advance(active, running, ended, bar) -> None:
    """Moves one running job on; takes it off the list when it has ended, well or not."""
    try:
        if not active.advance():
            return
        reason = ""
    except (ValueError, OSError) as error:
        reason = str(error)
    running.remove(active)
    active.close()
    _end(active.job, reason, ended, bar)


def _end(job, reason, ended, bar) -> None:
    ended[job.name] = reason
    bar.update()
    if reason:
        logger.error("%s failed: %s", job.name, reason)
    else:
        logger.info("%s is done", job.name)


def _drop_blocked(waiting, ended, bar) -> None:
    """Ends the jobs whose needs have failed."""
    for job in list(waiting):
        if failed := [n for n in job.needs if ended.get(n)]:
            waiting.remove(job)
            _end(job, f"it needs {failed[0]}, which failed", ended, bar)


@contextlib.contextmanager
def _stopping(running):
    """Opens a context: whatever ends it early also ends the running commands; SIGTERM counts as Ctrl-C."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        stop(running)
        signal.signal(signal.SIGTERM, before)


def stop(running: list[Active]) -> None:
    """Ends the running commands: SIGTERM, then, after PATIENCE or a second interrupt, SIGKILL."""
    processes = [a.process for a in running if a.process is not None and a.process.poll() is None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for active in running:
            active.close()

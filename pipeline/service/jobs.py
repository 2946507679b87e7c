"""The videos that users of a service asked for: a queue in order of arrival, made one at a time.

Threads of a web server submit, ask and stop; one worker takes. A job whose user has gone is not made: who still waits
for it asks for its state now and then (`Jobs.of`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
MOST_WAITING = 64  # jobs in the queue; one more is refused
MOST_KEPT = 1000  # jobs that are remembered, their videos' names with them
LEASE = 300.0  # seconds; a page in the background may ask once a minute only


@dataclass(eq=False)
class Job:
    """One video that was asked for, or only the loading of a model (`loads_only`).

    overrides: of the service's recipe, as key=value. path: of the video, once it is known. frames: pixel frames so far.
    """

    owner: str
    overrides: Sequence[str]
    loads_only: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    state: str = WAITING
    error: str = ""
    path: Path | None = None
    chunks: int = 0
    num_chunks: int = 0
    frames: int = 0
    begun: float = 0.0
    seconds: float = 0.0  # that it took, once it is over
    stop_requested: bool = False
    shown: bool = False  # the page has its video element
    seen: float = 0.0  # when its owner last asked for it

    @property
    def is_over(self) -> bool:
        """True if nothing more comes."""
        return self.state in (DONE, STOPPED, FAILED)

    @property
    def files(self) -> list[Path]:
        """The names that the video has while it is made, and when it is finished."""
        return [self.path.with_suffix(".partial.mp4"), self.path] if self.path else []

    @property
    def fps(self) -> float:
        """Pixel frames made per second so far."""
        spent = self.seconds if self.is_over else time.monotonic() - self.begun
        return self.frames / max(spent, 1e-9)


class Jobs:
    """The queue. Each owner (a page in a browser) has one job at a time."""

    def __init__(self, lease: float = LEASE):
        self.lease = lease
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._latest: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._changed = threading.Condition()

    def submit(self, job: Job) -> Job:
        """Puts a job at the end of the queue. Errors: ValueError while its owner's last one runs, or for too many."""
        with self._changed:
            before = self._latest.get(job.owner)
            if before is not None and not before.is_over:
                raise ValueError("this page's last video is still being made; stop it first")
            if len(self._waiting) >= MOST_WAITING:
                raise ValueError(f"{MOST_WAITING} videos are waiting already; try again later")
            job.seen = time.monotonic()
            self._known[job.id] = self._latest[job.owner] = job
            self._waiting.append(job)
            self._forget()
            self._changed.notify_all()
        return job

    def take(self, timeout: float | None = None) -> Job | None:
        """Returns the next job, which runs from now on, or None if none has come in `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout)
            while self._waiting:
                job = self._waiting.pop(0)
                if not self.is_gone(job):
                    job.state, job.begun = RUNNING, time.monotonic()
                    return job
                job.state = STOPPED
        return None

    def finish(self, job: Job, error: str | None = None) -> None:
        """Says that a job is over. error: why it failed."""
        with self._changed:
            job.seconds, job.error = time.monotonic() - job.begun, error or ""
            job.state = FAILED if error is not None else STOPPED if job.chunks < job.num_chunks else DONE

    def stop(self, job: Job) -> None:
        """Takes a job out of the queue, or lets its video end behind the chunk that is being made."""
        with self._changed:
            job.stop_requested = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = STOPPED

    def should_stop(self, job: Job) -> bool:
        """True if the video is to end: its user said so, or has gone."""
        return job.stop_requested or self.is_gone(job)

    def is_gone(self, job: Job) -> bool:
        """True if nobody has asked for the job for `lease` seconds."""
        return time.monotonic() - job.seen > self.lease

    def place(self, job: Job) -> tuple[int, int]:
        """Returns (a job's place in the queue, from 1, how many wait); place 0 for one that does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0, len(self._waiting)

    def of(self, owner: str) -> Job | None:
        """Returns an owner's latest job, and notes that the owner is there."""
        job = self._latest.get(owner)
        if job is not None:
            job.seen = time.monotonic()
        return job

    def describe(self, job: Job) -> str:
        """Returns in words how far a job is."""
        length = f"{job.frames} frames, {job.fps:.1f} a second"
        match job.state:
            case "waiting":
                place, count = self.place(job)
                return f"waiting: place {place} of {count} in the queue"
            case "running":
                done = f"chunk {job.chunks} of {job.num_chunks}: {length}" if job.chunks else "beginning"
                return "ends behind the chunk that is being made" if job.stop_requested else done
            case "failed":
                return f"failed: {job.error}"
            case "stopped":
                return f"stopped: {length}" if job.chunks else "stopped before it began"
        return "the model is loaded" if job.loads_only else f"done: {length}"

    def find(self, id: str) -> Job | None:
        """Returns the job of this id."""
        return self._known.get(id)

    def _forget(self) -> None:
        for old in [job for job in self._known.values() if job.is_over][: max(len(self._known) - MOST_KEPT, 0)]:
            del self._known[old.id]
            if self._latest.get(old.owner) is old:
                del self._latest[old.owner]

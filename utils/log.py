"""Logging and progress. Every room logs by `logging.getLogger(__name__)`; a door calls `setup` once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from utils.parallel import ranks

ROOMS = (
    "wan",
    "cogvideox",
    "utils",
    "model",
    "pipeline",
    "trainer",
    "scripts",
    "demo",
    "train",
    "inference",
    "__main__",
)
LEVELS = ("debug", "info", "warning", "error")
RATE_STEPS = 50  # steps over which a training's speed is smoothed
QUIET_SECONDS = 60  # between two lines of a training without a terminal
_installed: list[logging.Handler] = []
logger = logging.getLogger(__name__)


class _Terminal(logging.Handler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class _File(logging.FileHandler):
    """A log file on a disk that may be full: then it has a gap, and the program goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it still holds has no room
            super().close()


def keep_traceback(error: BaseException) -> bool:
    """Writes the traceback of an error into the log file; False if there is none."""
    record = logger.makeRecord(
        logger.name, logging.ERROR, __file__, 0, "the traceback of the error that ended the program", (), _info(error)
    )
    files = [handler for handler in _installed if isinstance(handler, _File)]
    for handler in files:
        handler.emit(record)
    return bool(files)


def _info(error: BaseException) -> tuple:
    return type(error), error, error.__traceback__


def setup(level: str = "info", file: str | Path | None = None) -> None:
    """Sends our rooms' messages from `level` on, and the libraries' warnings, to stderr and to `file` (appended).

    Ranks above 0 only report warnings, with their number. Calling it again replaces the earlier set-up.
    """
    if level not in LEVELS:
        raise ValueError(f"log level is {level!r}; write one of {', '.join(LEVELS)}")
    here = ranks.rank()
    threshold = getattr(logging, level.upper())
    handlers: list[logging.Handler] = [_Terminal()]
    if here > 0:
        threshold = max(threshold, logging.WARNING)
    elif file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(file, encoding="utf-8"))
    root = logging.getLogger()
    while _installed:
        root.removeHandler(_installed[-1])
        _installed.pop().close()
    where = f" [rank {here}]" if ranks.world_size() > 1 else ""
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s{where} %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        _installed.append(handler)
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(threshold)


def shows_progress(force: bool | None = None) -> bool:
    """True on rank 0 when stderr is a terminal; `force` decides instead of the terminal, still on rank 0 only."""
    wanted = sys.stderr.isatty() if force is None else force
    return wanted and ranks.rank() == 0


def progress(items: Iterable | None = None, total: int | None = None, label: str = "", unit: str = "it", force=None):
    """Returns a tqdm bar over `items`, or one of `total` steps to be driven by `update()`; silent off rank 0."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, unit=unit, disable=not shows_progress(force), dynamic_ncols=True)


class VideoProgress:
    """A bar of chunks: videos done, chunks, pixel frames per second, memory and the time left; a context manager.

    `chunk(num_frames)` after each chunk with its number of pixel frames, `video()` after each finished video.
    `fps` counts from the first call on, so building the model is not part of it. Without a terminal rank 0 logs the
    same words, at most once a minute; other ranks are silent.
    """

    def __init__(self, num_videos: int, num_chunks: int, force: bool | None = None):
        """num_videos: of this rank. num_chunks: of all its videos together."""
        self.num_videos, self.videos, self.frames, self.started = num_videos, 0, 0, time.monotonic()
        self.num_chunks, self.chunks, self._before, self._told = num_chunks, 0, 0, self.started
        self.bar = progress(total=num_chunks, unit="chunk", force=force)
        self.bar.smoothing = 0  # a chunk with a recache or a snapshot takes longer; the time left is reckoned from all
        self.bar.bar_format = "{desc} |{bar}| chunk {n_fmt}/{total_fmt} {postfix} [{elapsed}, ETA {remaining}]"
        self._show()

    @property
    def fps(self) -> float:
        """Pixel frames per second so far."""
        return self.frames / max(time.monotonic() - self.started, 1e-9)

    def chunk(self, num_frames: int) -> None:
        """Counts a chunk of so many pixel frames (of all its videos)."""
        self.frames += num_frames
        self.chunks += 1
        self.bar.set_postfix_str(", ".join([f"{self.fps:.1f} fps", *_memory_words()]), refresh=False)
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and ranks.rank() == 0 and now - self._told >= QUIET_SECONDS:
            self._told = now
            left = (self.num_chunks - self.chunks) * (now - self.started) / max(self.chunks - self._before, 1)
            words = [f"{self.fps:.1f} fps", f"ETA {self.bar.format_interval(left)}", *_memory_words()]
            logger.info("chunk %d/%d: %s", self.chunks, self.num_chunks, ", ".join(words))

    def video(self) -> None:
        self.videos += 1
        self._show()

    def passed(self, num_chunks: int) -> None:
        """Counts chunks that an earlier run made; they say nothing about speed, so ETA leaves them out."""
        self.chunks += num_chunks
        self._before += num_chunks
        if not self.bar.disable:
            self.bar.initial += num_chunks
            self.bar.n += num_chunks

    def skip(self, num_chunks: int) -> None:
        """Counts a video that was already there, and its chunks."""
        self.passed(num_chunks)
        self.video()

    def _show(self) -> None:
        self.bar.set_description_str(f"videos {self.videos}/{self.num_videos}")

    def __enter__(self) -> VideoProgress:
        self.started = time.monotonic()
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()


class StepProgress:
    """A bar of training steps: loss, steps per second (smoothed), the time left, memory.

    `step()` after each step, `show(loss)` when a loss has been read: the bar never asks a device. Without a
    terminal rank 0 logs the same words, at most once a minute; other ranks are silent.
    """

    def __init__(self, start: int, total: int, label: str = "", force: bool | None = None):
        """start: steps that an earlier run has done; they say nothing about speed."""
        self.done, self.total, self.rate = start, total, 0.0
        self._steps, self._seconds, self._last, self._told = 0, 0.0, None, time.monotonic()
        self.bar = progress(total=total, label=label, unit="step", force=force)
        self.bar.bar_format = "{desc} |{bar}| step {n_fmt}/{total_fmt} [{elapsed}]{postfix}"
        self.bar.initial = self.bar.n = start

    def step(self) -> None:
        """Counts a step; the first one of a process is left out of the speed, for it also warms up."""
        now, self.done = time.monotonic(), self.done + 1
        if self._last is not None:
            keep = 1 - 1 / RATE_STEPS
            self._steps = self._steps * keep + 1
            self._seconds = self._seconds * keep + now - self._last
            self.rate = self._steps / max(self._seconds, 1e-9)
        self._last = now
        self.bar.update()

    def show(self, loss: float) -> None:
        """Shows the loss with what is known of speed and memory."""
        said = f"loss {loss:.4f}, {self.describe()}"
        if not self.bar.disable:
            self.bar.set_postfix_str(said)
        elif ranks.rank() == 0 and time.monotonic() - self._told >= QUIET_SECONDS:
            self._told = time.monotonic()
            logger.info("step %d/%d: %s", self.done, self.total, said)

    def describe(self) -> str:
        """Returns speed, time left and memory in words."""
        words = []
        if self.rate:
            left = (self.total - self.done) / self.rate
            words = [f"{self.rate:.2f} steps/s", f"ETA {self.bar.format_interval(left)}"]
        return ", ".join([*words, *_memory_words()])

    def close(self) -> None:
        self.bar.close()


def _memory_words() -> list[str]:
    return [f"{name} {size / 1e9:.2f} GB" for name, size in memory().items()]


def memory() -> dict[str, int]:
    """Returns bytes: `memory` that this process holds (where the system tells), `GPU peak` that torch had allocated."""
    found = {}
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            found["memory"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass  # not Linux
    torch = sys.modules.get("torch")  # only where the program uses it anyway
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["GPU peak"] = torch.cuda.max_memory_allocated()
    return found

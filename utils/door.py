"""Doors: one wrapper around the `main` of every command. What a user can mend is one line and status 2.

    @door("train.py", interrupted="run again to go on from the last checkpoint")
    def main(arguments=None) -> int: ...

The traceback goes to the log file; where there is none, to a file of its own unless the line says it all. A fault of
the program itself keeps Python's traceback and status 1. Among several ranks the first one that fails is heard last.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from utils import log
from utils.parallel import ranks
from utils.signals import Stopped

MENDABLE, INTERRUPTED = 2, 130
LEAST_ADDRESSES = 1.5e9
# Packages whose errors come from the files that they read or the disk that they write.
FOREIGN = {"safetensors", "safetensors_rust", "lmdb", "zipfile", "tarfile", "struct", "zlib", "_lzma", "pickle"}
FOREIGN |= {"_pickle", "yaml", "tokenizers", "huggingface_hub", "requests", "httpx", "PIL", "av", "json"}
NO_MEMORY = ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "failed to map segment")
NO_THREADS = ("can't start new thread", "thread creation failed", "resource temporarily unavailable")
PROBLEMS = re.compile(r"\d+ problems ")  # a list, a line each
FILES = ("pytorchstream", "inline_container", "file_reader", "unexpected eof", "no space left", "file too large")


def door(name: str, interrupted: str = "") -> Callable:
    """Returns a decorator for a `main` that returns an exit status (None = 0) and raises what is wrong.

    name: of the command, which begins the line. interrupted: what to do after Ctrl-C (status 130).
    """

    def decorate(main: Callable) -> Callable:
        @functools.wraps(main)
        def run(*args, **kwargs) -> int:
            with _Answer(name, interrupted) as answer:
                check_address_space()
                answer.status = main(*args, **kwargs) or 0
                sys.stdout.flush()
            return answer.status

        return run

    return decorate


class _Answer:
    """A context that turns an exception into a line and a status."""

    def __init__(self, name: str, interrupted: str):
        self.name, self.interrupted, self.status = name, interrupted, 1

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, KeyboardInterrupt):
            by_signal = isinstance(error, Stopped)
            self.status = 128 + error.number if by_signal else INTERRUPTED
            how = f"stopped by {error}" if by_signal else "interrupted"
            _say(f"{self.name}: {how}; {self.interrupted}".rstrip("; "))
            return True
        text = explain(error) if isinstance(error, Exception) else None
        if ranks.is_initialised() and isinstance(error, Exception):
            return self._answer_among_ranks(error, text)
        if text is None:
            return False
        self._end(f"{self.name}: {text}{_keep(error)}")
        return True

    def _end(self, line: str) -> None:
        self.status = MENDABLE
        if line:
            _say(line)
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at its end, and write a traceback
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())

    def _answer_among_ranks(self, error: Exception, text: str | None) -> bool:
        lost = ranks.is_lost_peer(error)
        first, cause = ranks.declare_failure(f"{self.name}: {text or f'{type(error).__name__}: {error}'}", lost)
        if first:
            ranks.wait_for_others()
            if text is None:
                return False
            self._end(f"{self.name}: {text}{_keep(error)}")
            return True
        _keep(error)
        self._end(f"{self.name}: rank {ranks.rank()} ends, because {cause}")
        ranks.wait_for_end()
        return True


def explain(error: Exception) -> str | None:
    """Returns an error that a user can mend as one text, or None for a fault of the program."""
    text = str(error).strip() or type(error).__name__
    lower, short = text.lower(), text.partition("\n")[0]
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, MemoryError) or any(words in lower for words in NO_MEMORY):
        said = "" if isinstance(error, MemoryError) and not str(error) else f" ({short})"
        return f"not enough memory{said}; take a smaller batch, size or length, fewer threads, or another machine"
    if isinstance(error, RuntimeError | OSError) and any(words in lower for words in NO_THREADS):
        return f"no further thread can be started ({short}); take fewer threads, or raise `ulimit -u` and `ulimit -v`"
    if isinstance(error, RecursionError):
        return f"a value or file is nested too deeply ({short}, in {_place(error)}); write it flat"
    if isinstance(error, KeyError):
        return f"{short} is missing in what {_place(error)} reads; the file is damaged or of another program"
    if isinstance(error, ValueError | OSError):
        return text if PROBLEMS.match(text) else " ".join(text.split())
    if package in FOREIGN or isinstance(error, EOFError | OverflowError):
        return f"{type(error).__name__}: {short}"
    if isinstance(error, RuntimeError) and any(words in lower for words in FILES):
        return f"a file cannot be read or written: {short}"
    return None


def check_address_space() -> None:
    """Raises MemoryError where the libraries would not load: some of them end the process without a word."""
    if sys.platform == "linux":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
            has = f"`ulimit -v` lets this process have {limit / 1e9:.1f} GB"
            raise MemoryError(f"{has} and the libraries alone take {LEAST_ADDRESSES / 1e9:.1f} GB")


def check_output(path: str | Path) -> None:
    """Raises OSError, before any work, if a file of this path could not be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder has the name of the file; write another name", str(path))
    check_folder(path.parent)


def check_folder(folder: str | Path) -> None:
    """Raises OSError, naming the folder, if it could not be made or no file be written there; leaves nothing there."""
    try:
        there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if os.path.lexists(p))
        with tempfile.NamedTemporaryFile(dir=there, prefix=".", suffix=".tmp") as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written there ({error.strerror})", str(folder)) from error


def _place(error: Exception) -> str:
    """Returns file and line of our own code where an error began."""
    root = str(Path(__file__).resolve().parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(root) and "site-packages" not in f.filename] or frames
    return f"{os.path.relpath(ours[-1].filename, root)}:{ours[-1].lineno}" if ours else "a file"


def _keep(error: Exception) -> str:
    """Writes the traceback down; returns where, to be added to the line, or nothing where the line says it all."""
    if log.keep_traceback(error) or isinstance(error, ValueError | OSError):
        return ""
    with contextlib.suppress(OSError, MemoryError):
        with tempfile.NamedTemporaryFile("w", prefix="longtake-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
        return f" (traceback: {file.name})"
    return ""


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)

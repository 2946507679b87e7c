"""Files that are whole or absent: temporary name, fsync, rename. Files that grow; JSON of what a run records."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import BinaryIO

TAIL = 1 << 16  # bytes before a mark by which a file is known again


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a whole file or none: temporary name next to it, flush, fsync, rename, fsync of the folder.

    content: the bytes, or a function that writes into the binary file it is given.
    Errors: OSError naming the final path (e.g. a full disk); the temporary file is removed on any error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # ranks may write one name at once
    try:
        with explain_full_disk(path), open(partial, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            sync_file(file)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class GrowingFile:
    """A file that grows under a temporary name, and gets its own when it is finished.

    What was written is with the system at once: a killed process loses none of it. `mark` says how far the file is;
    with such a mark a later writer cuts it there and goes on, also if it had got its final name meanwhile.
    Errors: ValueError for a file that is not the marked one; OSError for a full disk, naming the final path.
    """

    def __init__(self, path: str | Path, partial: str | Path, mark: dict | None = None):
        self.path, self.partial = Path(path), Path(partial)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if mark is None:
            with explain_full_disk(self.path):
                self.file = open(self.partial, "w+b", buffering=0)
            return
        source = self.partial if self.partial.is_file() else self.path
        if not source.is_file():
            raise ValueError(f"{self.partial} is gone")
        self.file = open(source, "r+b", buffering=0)
        if self._tail(mark["bytes"]) != mark["tail"]:
            self.file.close()
            raise ValueError(f"{source} is not the file that its snapshot knows, or was cut")
        if source != self.partial:
            os.replace(source, self.partial)
        self.file.truncate(mark["bytes"])

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        rest = memoryview(data)
        self.file.seek(0, os.SEEK_END)  # it may have been read
        with explain_full_disk(self.path):
            while rest:  # an almost full disk takes a part before it says so
                rest = rest[self.file.write(rest) :]

    def mark(self) -> dict:
        """Brings all to the disk; returns how far the file is: {"bytes": its length, "tail": a digest of its end}."""
        with explain_full_disk(self.path):
            sync_file(self.file)
        end = self.file.seek(0, os.SEEK_END)
        return {"bytes": end, "tail": self._tail(end)}

    def finish(self) -> None:
        """Brings all to the disk and gives the file its final name."""
        with explain_full_disk(self.path):
            sync_file(self.file)
            self.file.close()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)

    def give_up(self, keep: bool = False) -> None:
        """Closes the file and removes it, or leaves it under its temporary name. A finished one stays."""
        self.file.close()
        if not keep:
            self.partial.unlink(missing_ok=True)

    def _tail(self, end: int) -> str:
        """Returns a digest of the bytes before `end`."""
        self.file.seek(max(0, end - TAIL))
        return hashlib.sha256(self.file.read(min(end, TAIL))).hexdigest()[:16]


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically. Dataclasses, paths, arrays and tensors become plain; NaN and infinities become null."""
    atomic_write(path, (json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _plain(value):
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars too
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def explain_full_disk(path: Path):
    """A context. Turns a full disk, quota or size limit into an OSError that names the file and says what is safe."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = (
            f"{os.strerror(error.errno)} while writing; nothing half has this name, finished files are kept; free space"
        )
        raise OSError(error.errno, reason, str(path)) from error


def sync_file(file: BinaryIO) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings a rename to the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

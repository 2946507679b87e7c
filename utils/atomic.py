"""Files that are whole or absent: temporary name, fsync, rename. Files that grow; JSON of what a run records."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import BinaryIO

from utils.json_reader import JsonError, parse_json

TAIL = 1 << 16  # bytes before a mark by which a file is known again


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a whole file or none: temporary name next to it, flush, fsync, rename, fsync of the folder.

    content: the bytes, or a function that writes into the binary file it is given.
    Errors: OSError naming the final path (e.g. a full disk); the temporary file is removed on any error.
    """
    with new_file(path) as partial, partial.open("r+b") as file:
        file.write(content) if isinstance(content, bytes) else content(file)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A context that yields a temporary name for a writer that takes one; at its end the file is whole and has `path`.

    The file has the modes of the user's umask, whatever the writer gives it. Its name cannot be known beforehand, so
    nobody can have put a link there; a link that has the final name is replaced, not what it leads to.
    Errors: OSError naming the final path (e.g. a full disk); the temporary file is removed on any error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # ranks may write one name at once
    try:
        with explain_full_disk(path):
            with create_file(partial) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield partial
            with open(os.open(partial, os.O_RDWR | os.O_NOFOLLOW), "rb") as file:  # safetensors makes another one
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_file(path: Path) -> BinaryIO:
    """Returns a new, unbuffered file to read and write, with the modes of the user's umask.

    Follows no link. Errors: OSError if there is something of this name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "r+b", buffering=0)


def remove_tree(path: Path) -> None:
    """Removes what a killed run left: a folder and all in it; of a link the link alone."""
    path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


def write_tensors(path: str | Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes contiguous tensors that share no memory as one safetensors file, whole or none.

    Errors: OSError naming the path (e.g. a full disk).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with new_file(path) as partial:
            save_file(tensors, partial, metadata)
    except SafetensorError as reason:  # the library's own kind, also for a full disk
        raise OSError(f"{path} cannot be written ({reason}); nothing half has this name; free space") from reason


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
                self.partial.unlink(missing_ok=True)  # of a run that was killed, or a link: nothing is written there
                self.file = create_file(self.partial)
            return
        source = self.partial if os.path.lexists(self.partial) else self.path
        self.file = _open_marked(source, self.partial)
        if self._tail(mark["bytes"]) != mark["tail"]:
            self.file.close()
            raise ValueError(f"{source} is not the file that its snapshot knows, or was cut")
        if source != self.partial:
            os.replace(source, self.partial)
        self.file.truncate(mark["bytes"])

    def write(self, data: bytes) -> None:
        """Appends bytes: all, or none and an error."""
        rest = memoryview(data)
        begin = self.file.seek(0, os.SEEK_END)  # it may have been read
        try:
            with explain_full_disk(self.path):
                while rest:  # an almost full disk takes a part before it says so
                    rest = rest[self.file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self.file.truncate(begin)  # players do not open a video whose last fragment is cut
            raise

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


def _open_marked(source: Path, partial: Path) -> BinaryIO:
    """Returns a file that is there, to read and write. Errors: ValueError if it is gone, or no ordinary file."""
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            raise ValueError(f"{source} is a link or no ordinary file")
        return open(os.open(source, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b", buffering=0)
    except FileNotFoundError:
        raise ValueError(f"{partial} is gone") from None


def read_rows(path: str | Path) -> tuple[list[dict], int]:
    """Returns the JSON objects of a log with a row a line, and how many lines are none (cut off, or damaged).

    A log is no state: a bad line loses that line.
    """
    rows, bad = [], 0
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            rows += [parse_json(line, str(path))] if line.strip() else []
        except JsonError:
            bad += 1
    return rows, bad


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
